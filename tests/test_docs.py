"""docs/cli.md and the command line say the same: every verb and flag is in both."""

import re
import tomllib
from pathlib import Path

import pytest

from mrp.cli.parser import VERBS, verb_parser

ROOT = Path(__file__).parents[1]
CLI = ROOT / "docs" / "cli.md"


def sections() -> dict[str, str]:
    """The text below each heading `mrp VERB ...`, and below `Everywhere`."""
    found: dict[str, str] = {}
    for part in re.split(r"^#{2,3} ", CLI.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        match = re.match(r"`mrp ([a-z-]+)", heading)
        found[match[1] if match else heading] = text
    return found


def flags_of_parser(verb: str) -> set[str]:
    return set(verb_parser(verb)._option_string_actions)


def flags_in(text: str) -> set[str]:
    """Flags as they stand in code: `-j`, `--jobs N`."""
    return {flag for code in re.findall(r"`(-[^`]*)`", text) for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", code)}


EVERYWHERE = {"-C", "--directory", "--json", "-q", "--quiet", "-v", "--verbose", "-h", "--help"}


def test_every_verb_has_a_section_and_every_section_a_verb() -> None:
    assert {name for name in sections() if name in VERBS} == set(VERBS)
    assert {name for name in sections() if not name[0].isupper()} == set(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_verbs_flags_are_those_that_its_section_documents(verb: str) -> None:
    assert flags_in(sections()[verb]) - EVERYWHERE == flags_of_parser(verb) - EVERYWHERE


def test_flags_that_every_verb_has_are_documented_once() -> None:
    documented = {
        flag
        for row in re.findall(r"^\| (`-.*?) \|", sections()["Everywhere"], re.MULTILINE)
        for flag in re.findall(r"--?[A-Za-z][a-z-]*", row)
    }
    assert documented == EVERYWHERE
    for verb in VERBS:
        assert flags_of_parser(verb) >= EVERYWHERE, verb


@pytest.mark.parametrize("page", sorted(CLI.parent.rglob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_locks_hold_every_dependency_with_its_hashes_and_no_index() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name != "vllm"}
    wanted = [*project["dependencies"], *(name for extra in extras.values() for name in extra)]
    base, backends = locked("requirements.lock"), locked("requirements-backends.lock")
    names = {re.split(r"[^A-Za-z0-9_-]", name)[0].lower() for name in wanted}
    assert names <= base.keys() | backends.keys()
    assert base["lark"] == "1.2.2", "which vllm pins, and has an environment of its own in the tests"
    both = base.keys() & backends.keys()
    assert {name: base[name] for name in both} == {name: backends[name] for name in both}


def locked(name: str) -> dict[str, str]:
    """The versions in a lock by the name of the package."""
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert text.count("==") <= text.count("--hash=sha256:")
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
