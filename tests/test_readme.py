"""The README's tour, command by command, in a copy of the example that it speaks of."""

import re
import subprocess
from pathlib import Path

from support.places import MRP
from test_same_digests import quickstart

README = Path(__file__).parents[1] / "README.md"


def tour() -> list[str]:
    """The commands of the tour, without the two that only go to the folder and name the program."""
    text = README.read_text().partition("## Five minutes with it")[2].partition("## What it promises")[0]
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("cd ", "alias "))]


def test_every_command_of_the_tour_does_what_it_says(tmp_path: Path) -> None:
    place = quickstart(tmp_path / "quickstart")
    place.build("//jobs:eval")
    commands = tour()
    assert len(commands) >= 10
    said: list[tuple[str, str]] = []
    for command in commands:
        script = f'mrp() {{ {" ".join(MRP)} "$@"; }}\n{command}\n'
        done = subprocess.run(
            ["bash", "-c", script], cwd=place.folder, env=place.environment(), capture_output=True, text=True
        )
        expected = 1 if command.startswith("mrp diff") else 0
        assert done.returncode == expected, f"{command}\n{done.stdout}\n{done.stderr}"
        said.append((command, done.stdout + done.stderr))
    builds = [text for command, text in said if command.startswith("mrp build")]
    assert "0 executed" in builds[0]
    (reasons,) = [text for command, text in said if command.startswith("mrp why")]
    assert "jobs/tasks/clamp" in reasons


def test_three_trials_run_after_one_instruction_changed(tmp_path: Path) -> None:
    place = quickstart(tmp_path / "quickstart")
    place.build("//jobs:eval")
    with (place.folder / "jobs/tasks/clamp/instruction.md").open("a") as file:
        file.write("Mind the ends of the range.\n")
    place.build("//jobs:eval")
    ran = place.executed()
    assert [item for kind, _, item in ran if kind == "trial"] == ["clamp"] * 3
    path = place.folder / "jobs/tasks/clamp/tests/test_solution.py"
    path.write_text(path.read_text() + "\n# one more line\n")
    place.build("//jobs:eval")
    assert {kind for kind, _, _ in place.executed()} == {"grade"}
