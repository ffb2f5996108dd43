"""Which processes share a slot: the quick look at one after another says what the whole look says."""

from dataclasses import replace
from decimal import Decimal

import pytest

from mrp.cache.digest import Digest, digest_bytes
from mrp.runtime.sandbox.layout import ImageView
from mrp.runtime.sandbox.shared import Shareable, alike, shareable
from mrp.specs.work import OPERATOR_DIR, OUT, SDK_DIR, TASK, WORK, Box, Mount, Process

EMPTY = digest_bytes(b"{}")
VIEW = ImageView((), None, {"LANG": "C"}, 1000, 1000, "/usr/bin/python3")


def tree(name: str) -> Digest:
    return digest_bytes(name.encode())


FIRST = Process(
    box=Box(tree("image"), env={"SHARED": "yes"}),
    entry="echo:Echo",
    role="agent",
    pure=True,
    mounts=(
        Mount(TASK, tree("task 1")),
        Mount(WORK, EMPTY, writable=True),
        Mount(OUT, EMPTY, writable=True),
        Mount(OPERATOR_DIR, tree("operator")),
        Mount(SDK_DIR, tree("sdk")),
    ),
    outputs=(WORK, OUT),
    env={"MRP_RECORD_ID": "1", "MRP_SEED": "1"},
)
LIKE_IT = replace(
    FIRST, mounts=(Mount(TASK, tree("task 2")), *FIRST.mounts[1:]), env={"MRP_RECORD_ID": "2", "MRP_SEED": "5"}
)


def wholly(process: Process) -> Shareable:
    found = shareable(process, VIEW, EMPTY)
    assert found is not None
    return found


def test_the_next_item_of_an_operator_is_seen_to_be_like_the_last() -> None:
    quick, whole = alike(LIKE_IT, wholly(FIRST)), wholly(LIKE_IT)
    assert quick == whole
    assert quick is not None
    assert list(quick.env.items()) == list(whole.env.items()), "programs see the order"


@pytest.mark.parametrize(
    "other",
    [
        replace(FIRST, box=replace(FIRST.box, env={"SHARED": "no"})),
        replace(FIRST, entry="other:Echo"),
        replace(FIRST, pure=False),
        replace(FIRST, model=True),
        replace(FIRST, outputs=(OUT,)),
        replace(FIRST, cwd="/"),
        replace(FIRST, role="grader"),
        replace(FIRST, env={**FIRST.env, "MORE": "1"}),
        replace(FIRST, mounts=(*FIRST.mounts[:3], Mount(OPERATOR_DIR, tree("another")), FIRST.mounts[4])),
        replace(FIRST, mounts=(*FIRST.mounts[:2], Mount(OUT, EMPTY), *FIRST.mounts[3:])),
        replace(FIRST, mounts=FIRST.mounts[1:]),
    ],
)
def test_what_differs_in_more_is_looked_at_wholly(other: Process) -> None:
    assert alike(other, wholly(FIRST)) is None


@pytest.mark.parametrize("name", ["MRP_ROLE", "PWD", "PYTHONPATH"])
def test_variables_that_mean_more_are_looked_at_wholly(name: str) -> None:
    process = replace(FIRST, env={**FIRST.env, name: "/elsewhere"})
    assert alike(process, wholly(process)) is None


def test_the_time_that_an_item_may_take_is_its_own() -> None:
    slower = replace(LIKE_IT, timeout=Decimal(5))
    found = alike(slower, wholly(FIRST))
    assert found is not None
    assert found.process.timeout == 5
