"""SIZE items as Ray tasks on CORES cores, timed without Ray's start."""
# mypy: ignore-errors
# It runs in the environment of its peer, which mypy does not see.

import sys
import time

import ray

size, cores = int(sys.argv[1]), int(sys.argv[2])
ray.init(num_cpus=cores, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="error")


@ray.remote
def echo(item):
    return {"reward": 1}


started = time.perf_counter()
results = ray.get([echo.remote(item) for item in range(size)])
print(f"value: {time.perf_counter() - started:.6f}")
print(f"items: {len(results)}")
