"""Making a snapshot of an image's files, in a process of its own.

When it uploads, the SDK empties the environment of the whole process for a moment, under the feet of other threads.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = "rootfs.tar"
"""What the archive with the image's files is called in its folder."""


class NotMade(Exception):
    """The snapshot was not made. status_code: what the service answered with, None when it did not answer."""

    def __init__(self, message: str, status: int | None, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.status_code, self.headers = status, headers


def make_snapshot(name: str, folder: Path, resources: Mapping[str, int], seconds: int) -> None:
    """Have the service make a snapshot of ROOT in `folder`, and wait for it. Raises NotMade."""
    job = {"name": name, "folder": f"{folder}/", "resources": dict(resources), "seconds": seconds}
    command = [sys.executable, "-m", "mrp.runtime.sandbox.daytona_upload", json.dumps(job)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=seconds + 60
        )
        said = json.loads(done.stdout.strip().rpartition("\n")[2] or "{}")
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise NotMade(f"the upload of the image did not end well: {error}", None, {}) from error
    if not said.get("made"):
        message = said.get("message") or done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise NotMade(message, said.get("status"), said.get("headers") or {})


def _make(job: Mapping[str, Any]) -> dict[str, Any]:
    import daytona

    # The SDK uploads what COPY names. ADD is what unpacks, so the archive has to be named by both; the first stage is
    # never built.
    lines = ["FROM scratch AS context", f"COPY {ROOT} /", "FROM scratch", f"ADD {ROOT} /"]
    sizes = job["resources"]
    try:
        image = daytona.Image().dockerfile_commands(lines, context_dir=job["folder"])
        resources = daytona.Resources(sizes["cpu"], sizes["memory"], sizes["disk"])
        params = daytona.CreateSnapshotParams(name=job["name"], image=image, resources=resources)
        daytona.Daytona().snapshot.create(params, timeout=job["seconds"])
    except Exception as error:
        headers = {str(key): str(value) for key, value in (getattr(error, "headers", None) or {}).items()}
        status = getattr(error, "status_code", None)
        return {"message": str(error) or type(error).__name__, "status": status, "headers": headers}
    return {"made": True}


if __name__ == "__main__":
    print("\n" + json.dumps(_make(json.loads(sys.argv[1]))))
