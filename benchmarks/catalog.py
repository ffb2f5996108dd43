"""Which benchmarks there are: the whole list, and the quick one.

A whole run takes about an hour, so the slow rows are done in fewer rounds than five; the report says in how many.
"""

from benchmarks.terms import Benchmark
from benchmarks.workloads.basics import limits, starting
from benchmarks.workloads.calls import null_calls
from benchmarks.workloads.evals import evaluation
from benchmarks.workloads.files import large_file, small_files
from benchmarks.workloads.items import on_ray, pure
from benchmarks.workloads.trials import trials
from benchmarks.workloads.w1 import w1

ONCE_FROM_NOTHING = {"cold": 1, "deleted": 1, "clone": 1}
SLOW_PEER = {"cold": 1, "edit": 3, "revert": 1, "touch": 1, "null": 3}

FULL: tuple[Benchmark, ...] = (
    starting(),
    limits(),
    w1(100, ("mrp", "ninja", "dvc"), rounds=3, slow={"dvc": SLOW_PEER}),
    w1(
        1_000,
        ("mrp", "mrp sandboxed", "ninja", "bazel", "snakemake", "redun"),
        slow={"snakemake": SLOW_PEER, "redun": SLOW_PEER},
    ),
    null_calls(1_000),
    trials(1_000),
    evaluation(1_000),
    large_file(2 * 1024**3),
    small_files(50_000),
    pure(10_000, ("mrp", "ray", "joblib", "redun"), slow={"redun": {"first": 1, "again": 3}}),
    on_ray(10_000),
    w1(
        10_000,
        ("mrp", "mrp sandboxed", "ninja", "bazel"),
        slow={
            "mrp": {"cold": 3},
            "ninja": {"cold": 3},
            "mrp sandboxed": ONCE_FROM_NOTHING,
            "bazel": {"cold": 1, "revert": 2, "touch": 2},
        },
    ),
    pure(100_000, ("mrp",), rounds=2),
    w1(
        100_000,
        ("mrp", "ninja"),
        slow={
            "mrp": {"cold": 1, "revert": 2, "touch": 2, "deleted": 1, "clone": 1},
            "ninja": {"cold": 1, "touch": 1},
        },
    ),
)

QUICK: tuple[Benchmark, ...] = (
    starting(rounds=5),
    limits(rounds=3),
    w1(500, ("mrp", "ninja"), rounds=3),
    pure(500, ("mrp", "joblib"), rounds=3),
)
QUICK_PEERS = ("ninja", "joblib")
