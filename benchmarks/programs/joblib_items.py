"""SIZE items through joblib.Memory, one call an item; the cache lies in the current folder."""
# mypy: ignore-errors
# It runs in the environment of its peer, which mypy does not see.

import sys

from joblib import Memory

memory = Memory("cache", verbose=0)


@memory.cache
def echo(item):
    return {"reward": 1}


results = [echo(item) for item in range(int(sys.argv[1]))]
print(f"items: {len(results)}")
