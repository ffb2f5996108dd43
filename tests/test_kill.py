"""kill -9 of the whole process group, again and again: what was committed stays, and the end is a clean build's."""

import random
import time
from pathlib import Path

from support.humaneval import humaneval, rows
from support.places import kill_group

SEED = 20261121


def test_a_build_killed_twenty_times_ends_like_a_clean_one(tmp_path: Path) -> None:
    clean = humaneval(tmp_path / "clean", rows())
    started = time.monotonic()
    clean.build("//jobs:eval")
    whole = time.monotonic() - started

    choose = random.Random(SEED)
    place = humaneval(tmp_path / "killed", rows())
    killed = 0
    while killed < 20:
        done, before = place.committed_keys(), set(place.runs())
        process = place.start("build", "//jobs:eval")
        time.sleep(choose.uniform(0.05, whole / 8))
        if process.poll() is not None:
            place.cache.rename(tmp_path / f"full-{killed}")
        else:
            kill_group(process)
            killed += 1
        for run in set(place.runs()) - before:
            assert not place.started_keys(run) & done, "a finished action ran twice"
    report = place.build("//jobs:eval")
    assert report["failed"] == 0
    assert place.digests() == clean.digests()
    assert not list((place.folder / ".mrp/tmp").iterdir()), "scratch folders of dead runs are left"
