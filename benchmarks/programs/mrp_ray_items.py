"""SIZE items of a workspace's //:solve on `--engine ray` with CORES jobs, timed without the start of Ray.

What is left out is what the build waited for its backend; what is counted is all the rest of the process, from its
start until the rollout is finished: compiling, keys, sandboxes and commits.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

size, jobs, workspace = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
with tempfile.TemporaryDirectory() as folder:
    profile = Path(folder) / "profile.json"
    words = ["-C", str(workspace), "build", "--engine", "ray", "-j", jobs, "--profile", str(profile), "//:solve"]
    started = time.time()
    subprocess.run([sys.executable, "-m", "mrp", *words], check=True, stdout=subprocess.DEVNULL)
    spans = json.loads(profile.read_bytes())["traceEvents"]
(start,) = [span["dur"] / 1e6 for span in spans if span.get("name") == "start backend"]
run = max((workspace / ".mrp" / "runs").iterdir())
events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
(ended,) = [event["at"] for event in events if event["type"] == "TaskFinished" and event["label"] == "//:solve"]
items = sum(event["type"] == "ItemFinished" and not event["cached"] for event in events)
print(f"value: {ended - started - start:.6f}")
print(f"items: {items}")
