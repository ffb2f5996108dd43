"""A workspace whose image is portable: this machine's own programs as a tar layer over nothing."""

import hashlib
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from support.kinds import Targets, workspace
from support.places import Place

from mrp.cache.canonical import parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.filestats import FileDigests
from mrp.cache.store import Store
from mrp.runtime.contract.image import PROGRAMS, toolchain_image
from mrp.runtime.images.oci import write_layer

BUILD = """\
mrp: 1
targets:
  tasks: {{kind: dataset, srcs: ["tasks.jsonl"], id: name}}
  py:
    kind: image
    base: scratch
    layers: [{{tar: toolchain.tar, sha256: {sha256}}}]
  box:
    kind: sandbox
    image: ":py"
    limits: {{cpus: 1, memory: 256MiB, wall: 60s, pids: 32, disk: 16MiB}}
  solver: {{kind: agent, version: 1.0.0, entry: "solver:Solver", srcs: ["solver.py"]}}
  solve:
    kind: rollout
    over: ":tasks"
    agent: ":solver"
    sandbox: ":box"
    retries: 8
    grade: {{command: [sh, -c, "sleep 0; cat /work/answer; echo 1 > /out/reward.txt"]}}
  eval: {{kind: reduction, of: [solve], reducer: stats}}
"""

SOLVER = """\
import time
import mrp.sdk

class Solver(mrp.sdk.Agent):
    def run(self, task, ctx):
        time.sleep(task.record["seconds"])
        (task.work / "answer").write_text(f"{task.record['name']} {ctx.seed}\\n")
        return mrp.sdk.Result(metrics={"letters": len(task.record["name"])})
"""


def portable(folder: Path, names: int = 4, seconds: float = 0) -> Place:
    """The workspace, with so many tasks, each of which sleeps."""
    place = Place(folder)
    layer = folder.with_name(folder.name + "-layer")
    with Store.open(layer / "cache") as store, FileDigests.open(layer / "digests") as digests:
        description = parse_canonical(store.get_bytes(toolchain_image(store, digests)))
        with (folder / "toolchain.tar").open("wb") as out:
            sha256, _ = write_layer(Digest(description["layers"][0]), store, out)
    assert sha256 == hashlib.sha256((folder / "toolchain.tar").read_bytes()).hexdigest()
    rows = "".join(f'{{"name": "task-{number}", "seconds": {seconds}}}\n' for number in range(names))
    files: dict[str, str | bytes] = {
        "mrp.yaml": "mrp: 1\nname: portable\n",
        "BUILD.yaml": BUILD.format(sha256=sha256),
        "tasks.jsonl": rows,
        "solver.py": SOLVER,
    }
    return place.write(files)


class Rooted:
    """This machine's own programs as an archive, and a cache in which the image of it is made: for many workspaces."""

    def __init__(self, folder: Path, programs: Sequence[str] = PROGRAMS) -> None:
        with Store.open(folder / "made") as store, FileDigests.open(folder / "digests") as digests:
            description = parse_canonical(store.get_bytes(toolchain_image(store, digests, programs)))
            out = io.BytesIO()
            write_layer(Digest(description["layers"][0]), store, out)
        self.root = out.getvalue()
        layer = {"tar": "root.tar", "sha256": hashlib.sha256(self.root).hexdigest()}
        self.image = {"kind": "image", "base": "scratch", "layers": [layer]}
        made = workspace(folder, {"py": self.image}, {"root.tar": self.root})
        made.build("//:py")
        self._cache = made.cache

    def workspace(self, folder: Path, targets: Targets, files: dict[str, str | bytes]) -> Place:
        """A workspace with the image as `:py`, and a cache of its own that has it."""
        place = workspace(folder, {"py": self.image, **targets}, {"root.tar": self.root, **files})
        shutil.copytree(self._cache, place.cache, symlinks=True)
        return place
