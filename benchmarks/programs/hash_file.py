"""`first PATH KEPT` hashes a file with BLAKE3, mapped and with threads; `again` only calls stat and compares.

first is timed inside and prints `value: SECONDS`.

It imports nothing that it can do without, since the least that a process must do is what it is there to show.
"""

import os
import sys

verb, path, kept = sys.argv[1:]
status = os.stat(path)
stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
if verb == "first":
    import time

    from blake3 import blake3

    started = time.perf_counter()
    digest = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
    with open(kept, "w") as file:
        file.write(f"{stamp}\n{digest}\n")
    print(f"value: {time.perf_counter() - started}")
else:
    with open(kept) as file:
        if file.readline().rstrip() != stamp:
            sys.exit("the file is not what it was")
