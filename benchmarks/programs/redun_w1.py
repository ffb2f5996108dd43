"""W1 as redun tasks; run in the folder of the leaves. Results lie in out/."""
# mypy: ignore-errors
# It runs in the environment of its peer, which mypy does not see.

import subprocess
from pathlib import Path

from redun import File, task

redun_namespace = "w1"


@task()
def copy(source: File, target: str) -> File:
    subprocess.run(["cp", source.path, target], check=True)
    return File(target)


@task()
def join(sources: list[File], target: str) -> File:
    subprocess.run(["sh", "-c", 'cat "$@" > ' + target, "sh", *[source.path for source in sources]], check=True)
    return File(target)


@task()
def main(groups: int) -> File:
    joined = []
    for number in range(groups):
        group = f"g{number:03d}"
        Path("out", group).mkdir(parents=True, exist_ok=True)
        copied = [copy(File(f"{group}/in{leaf:02d}.txt"), f"out/{group}/out{leaf:02d}.txt") for leaf in range(100)]
        joined.append(join(copied, f"out/{group}/all.txt"))
    return join(joined, "out/root.txt")
