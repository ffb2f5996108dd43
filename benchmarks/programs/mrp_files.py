"""`PATH KEPT`: mrp's memory of file digests reads a file, or all files of a folder, for the first time.

Timed inside, from opening the memory to its being written; prints `value: SECONDS`.
"""

import os
import sys
import time
from pathlib import Path

from mrp.cache.filestats import FileDigests

path, kept = sys.argv[1:]
root = Path.cwd()
started = time.perf_counter()
if os.path.isfile(path):
    paths = [path]
else:
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
with FileDigests.open(Path(kept)) as digests:
    found = digests.sources(root, paths)
seconds = time.perf_counter() - started
if len(found) != len(paths) or digests.files_read != len(paths):
    sys.exit(f"read {digests.files_read} of {len(paths)} files")
print(f"value: {seconds}")
