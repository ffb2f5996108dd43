"""`first FOLDER KEPT` scans, reads and hashes all files; `again` scans, calls stat and compares with what it kept.

first is timed inside and prints `value: SECONDS`.

It imports nothing that it can do without, since the least that a process must do is what it is there to show.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def scan(folder: str) -> "Iterator[tuple[str, str]]":
    """The path of each file, with the numbers that tell whether it is still the same."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from scan(entry.path)
        else:
            status = entry.stat(follow_symlinks=False)
            yield entry.path, f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


verb, root, kept = sys.argv[1:]
if verb == "first":
    import time

    from blake3 import blake3

    started = time.perf_counter()
    lines = []
    for path, stamp in scan(root):
        descriptor = os.open(path, os.O_RDONLY)
        data = os.read(descriptor, 1024 * 1024)
        os.close(descriptor)
        lines.append(f"{path}\t{stamp}\t{blake3(data).hexdigest()}\n")
    with open(kept, "w") as file:
        file.writelines(lines)
    print(f"value: {time.perf_counter() - started}")
else:
    with open(kept) as file:
        known = {path: stamp for path, stamp, _ in (line.split("\t") for line in file)}
    if dict(scan(root)) != known:
        sys.exit("the files are not what they were")
