"""HumanEval, 164 real tasks: the known answers, and after each edit exactly the work that it asks for."""

import os
import shutil
from collections import Counter

import pytest
from support.humaneval import humaneval, rows, write_rows
from support.places import Place

ORACLE, NOP = "//jobs:solve@agent=builtin:oracle", "//jobs:solve@agent=builtin:nop"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Built once; each test leaves it built and as it was."""
    place = humaneval(tmp_path_factory.mktemp("humaneval") / "ws", rows())
    report = place.build("//jobs:eval")
    assert report["failed"] == 0
    return place


def by_agent(place: Place) -> dict[str, int]:
    groups = place.output("jobs/eval/result.json")["groups"]
    return {group["by"]["agent"]: group["reward"]["sum"] for group in groups}


def test_the_oracle_passes_all_and_doing_nothing_passes_none(place: Place) -> None:
    assert by_agent(place) == {"builtin:oracle": 164, "builtin:nop": 0}


def test_a_second_build_executes_nothing(place: Place) -> None:
    report = place.build("//jobs:eval")
    assert (report["executed"], report["cached"]) == (0, 1 + 4 * 164 + 1)


def test_editing_a_solution_runs_one_trial_its_grade_and_what_reduces_it(place: Place) -> None:
    changed = rows()
    changed[3]["canonical_solution"] = "    # the same, said otherwise\n" + changed[3]["canonical_solution"]
    write_rows(place, changed)
    place.build("//jobs:eval")
    assert place.executed() == [
        ("grade", ORACLE, "HumanEval/3"),
        ("reduction", "//jobs:eval", ""),
        ("trial", ORACLE, "HumanEval/3"),
    ]
    write_rows(place, rows())
    assert place.build("//jobs:eval")["executed"] == 0, "reverting executes nothing"


def test_editing_a_test_grades_again_and_runs_no_agent(place: Place) -> None:
    changed = rows()
    changed[7]["test"] += "\n# one more line\n"
    write_rows(place, changed)
    place.build("//jobs:eval")
    assert place.executed() == [("grade", NOP, "HumanEval/7"), ("grade", ORACLE, "HumanEval/7")]
    write_rows(place, rows())
    assert place.build("//jobs:eval")["executed"] == 0


def test_adding_a_row_adds_one_item(place: Place) -> None:
    more = rows()
    more.append({**more[0], "task_id": "HumanEval/164", "prompt": more[0]["prompt"] + "    # another\n"})
    write_rows(place, more)
    place.build("//jobs:eval")
    ran = place.executed()
    assert {item for _, _, item in ran} == {"", "HumanEval/164"}
    assert Counter(kind for kind, _, _ in ran) == {"trial": 2, "grade": 2, "reduction": 1}
    write_rows(place, rows())
    assert place.build("//jobs:eval")["executed"] == 0


def test_reordering_rows_executes_nothing(place: Place) -> None:
    write_rows(place, rows()[::-1])
    assert place.build("//jobs:eval")["executed"] == 0
    write_rows(place, rows())


def test_touching_a_file_executes_nothing(place: Place) -> None:
    os.utime(place.folder / "jobs/tasks.jsonl")
    assert place.build("//jobs:eval")["executed"] == 0


def test_deleted_outputs_come_back_without_work(place: Place) -> None:
    before = (place.folder / "mrp-out/jobs/eval/result.json").read_bytes()
    shutil.rmtree(place.folder / "mrp-out")
    assert place.build("//jobs:eval")["executed"] == 0
    assert (place.folder / "mrp-out/jobs/eval/result.json").read_bytes() == before


def test_a_comment_in_a_build_file_executes_nothing(place: Place) -> None:
    path = place.folder / "jobs/BUILD.yaml"
    text = path.read_text()
    path.write_text("# a comment\n" + text.replace("  py:", "  # another\n  py:"))
    assert place.build("//jobs:eval")["executed"] == 0
    path.write_text(text)
