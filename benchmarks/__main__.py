"""The command line: `python -m benchmarks [NAME...]`, from the root of the repository.

Benchmarks whose raw results are there already are not run again, unless they are named; `--anew` forgets all raw
results first. Then the report is rendered from all raw results.
"""

import argparse
import shutil
import signal
import sys
from pathlib import Path

from benchmarks.catalog import FULL, QUICK, QUICK_PEERS
from benchmarks.environments import HERE, PEERS, install
from benchmarks.plot import plot
from benchmarks.report import report
from benchmarks.results import load, save
from benchmarks.running import OWN, run
from benchmarks.terms import Benchmark


def main(arguments: list[str]) -> int:
    """Run what `arguments` ask for; 1 when mrp could not do a piece of work, 2 for wrong arguments."""
    asked = _parser().parse_args(arguments)
    # A run that is ended cleans up as after Ctrl-C: measured commands are in sessions of their own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    catalog = QUICK if asked.quick else FULL
    known = {benchmark.name: benchmark for benchmark in catalog}
    if asked.list:
        print("\n".join(known))
        return 0
    if unknown := [name for name in asked.names if name not in known]:
        print(f"there is no benchmark `{unknown[0]}`; there are {', '.join(known)}", file=sys.stderr)
        return 2
    work = asked.work.resolve()
    raw = work / ("raw-quick" if asked.quick else "raw")
    failed = False
    if not asked.report_only:
        install(list(QUICK_PEERS) if asked.quick else [peer.name for peer in PEERS])
        if asked.anew or asked.quick:
            shutil.rmtree(raw, ignore_errors=True)
        chosen = [known[name] for name in asked.names] if asked.names else list(catalog)
        failed = _run_all(chosen, work, raw, asked.rounds, named=bool(asked.names))
    results = [found for name in known if (found := load(raw, name))]
    if asked.quick:
        print(report(results, plot=None))
    else:
        (HERE / "results.svg").write_text(plot(results))
        (HERE / "RESULTS.md").write_text(report(results, plot="results.svg"))
    return 1 if failed else 0


def _run_all(chosen: list[Benchmark], work: Path, raw: Path, rounds: int | None, *, named: bool) -> bool:
    """Run the benchmarks that have no results yet, or all if they were named; whether mrp failed at one."""
    failed = False
    for benchmark in chosen:
        if not named and load(raw, benchmark.name):
            print(f"{benchmark.name}: done before; name it to run it again", file=sys.stderr)
            continue
        results = run(benchmark, work / benchmark.name, rounds or benchmark.rounds)
        save(results, raw)
        failed = failed or any(tool.startswith(OWN) for tool in results.problems)
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure mrp beside other tools.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="run only these, also when they were run before")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_argument("--quick", action="store_true", help="small sizes and few peers; the report goes to stdout")
    parser.add_argument("--anew", action="store_true", help="forget all raw results first")
    parser.add_argument("--report-only", action="store_true", help="run nothing; render RESULTS.md from raw results")
    parser.add_argument("--rounds", type=int, help="how many rounds, instead of each benchmark's own number")
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="a folder for files on a local disk")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
