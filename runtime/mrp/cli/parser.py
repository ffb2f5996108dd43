"""The verbs and how their words are read. Only the module of the verb that was asked for is imported.

A verb's module has `configure(parser)`, which adds its arguments, and `run(arguments, screen) -> int`, which does
the work and returns the exit code. A module with several verbs is told by `arguments.verb` which one is meant.
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from mrp.cli.version import VERSION
from mrp.specs.errors import UsageError
from mrp.specs.suggest import did_you_mean

_EXCLUSION = re.compile(r"-(//|:|\.\.\.)")
_MARK = "\0"
"""Stands before `-//pattern` while argparse reads the line, since it would take that for an option."""


@dataclass(frozen=True)
class Verb:
    """One verb: the module in mrp.cli that does it, and its line in `mrp --help`."""

    module: str
    summary: str


VERBS: dict[str, Verb] = {
    "init": Verb("init", "make a small workspace that builds"),
    "build": Verb("build", "run what is missing, reuse the rest"),
    "plan": Verb("plan", "show what a build would run, and what it may cost"),
    "compile": Verb("compile", "write ir.json, manifest.json and policy_report.json"),
    "run": Verb("compile", "execute a compiled plan without any YAML"),
    "query": Verb("query", "ask the target graph"),
    "why": Verb("why", "show which input of an action changed, and how"),
    "diff": Verb("compare", "compare two runs and name the first action that differs"),
    "replay": Verb("compare", "execute a recorded run again and compare the bytes"),
    "check": Verb("compare", "build several times and compare the digests"),
    "inspect": Verb("inspect", "show a run, a target or an item: inputs, outputs, attempts"),
    "log": Verb("log", "list the runs, or show what an item printed"),
    "report": Verb("report", "summarise a run in Markdown"),
    "graph": Verb("query", "draw the targets that a target depends on"),
    "schema": Verb("schema", "print the JSON Schema of a document"),
    "cost": Verb("plan", "show what was spent, or what a build may cost"),
    "image": Verb("image", "lock an image's packages; load, export or push an image"),
    "policy": Verb("policy", "show the policy, or check targets against it"),
    "registry": Verb("later", "publish and fetch operators"),
    "cache": Verb("cache", "show, verify and tidy the cache"),
    "attest": Verb("later", "sign a result"),
    "verify-attestation": Verb("later", "check a signed result"),
    "approve": Verb("later", "let a held produce go on"),
    "session": Verb("later", "hold a conversation"),
    "fmt": Verb("fmt", "tidy the YAML of a workspace, comments kept"),
    "doctor": Verb("doctor", "look at what this machine has, and say what is missing"),
}

USAGE = "usage: mrp [-C DIR] VERB [ARGUMENTS]"


class Parser(argparse.ArgumentParser):
    """Reads the words after a verb; errors are UsageErrors that suggest the nearest flag."""

    def error(self, message: str) -> NoReturn:
        found = re.match(r"unrecognized arguments: (\S+)", message)
        if found is None:
            raise UsageError(f"{self.prog}{_in_words(message) or f': {message}; see {self.prog} --help'}")
        word = found[1].split("=", 1)[0].removeprefix(_MARK)
        if word.startswith("-"):
            raise UsageError(f"{self.prog} has no flag {word}{nearest(word, self._option_string_actions, self.prog)}")
        raise UsageError(f"{self.prog} does not know what to do with {word!r}; see {self.prog} --help")


def _in_words(message: str) -> str:
    """What argparse says about an argument, in words that every Python has, to follow the verb; "" for the rest."""
    missing = re.match(r"the following arguments are required: (.*)", message)
    if missing:
        return f" needs {missing[1]}"
    found = re.match(r"argument (\S+): (.*)", message)
    if not found:
        return ""
    if found[2] == "expected one argument":
        return f": {found[1]} needs a value after it"
    choice = re.match(r"invalid choice: '?(.*?)'? \(choose from (.*)\)", found[2])
    if choice:
        choices = choice[2].replace("'", "").split(", ")
        return f" does not know `{choice[1]}`; {did_you_mean(choice[1], choices) or 'write ' + ' or '.join(choices)}"
    return f": {found[1]}: {found[2]}"


def read(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one call, with `verb` and all its words, `argv`. Raises UsageError.

    --help and --version print and exit 0.
    """
    before, verb, after = _split(argv)
    if verb is None:
        print(overview())
        raise SystemExit(0)
    parser = verb_parser(verb)
    marked = [_MARK + word if _EXCLUSION.match(word) else word for word in [*before, *after]]
    arguments = parser.parse_args(marked)
    for name, value in vars(arguments).items():
        if isinstance(value, list):
            setattr(arguments, name, [w.removeprefix(_MARK) if isinstance(w, str) else w for w in value])
        elif isinstance(value, str):
            setattr(arguments, name, value.removeprefix(_MARK))
    arguments.verb = verb
    arguments.argv = list(argv)
    return arguments


def verb_parser(verb: str) -> Parser:
    """The parser of one verb; imports that verb's module."""
    parser = Parser(prog=f"mrp {verb}", description=f"{VERBS[verb].summary}.", allow_abbrev=False)
    module = import_module(f"mrp.cli.{VERBS[verb].module}")
    if hasattr(module, f"configure_{verb}"):
        getattr(module, f"configure_{verb}")(parser)
    else:
        module.configure(parser)
    common = parser.add_argument_group("everywhere")
    common.add_argument("-C", "--directory", metavar="DIR", default=".", help="work as if started in DIR")
    common.add_argument("--json", action="store_true", help="print one JSON document on stdout, the rest on stderr")
    common.add_argument("-q", "--quiet", action="store_true", help="only errors and the last line")
    common.add_argument("-v", "--verbose", action="store_true", help="each item; tracebacks of mrp's own errors")
    return parser


def overview() -> str:
    """What `mrp --help` prints."""
    width = max(map(len, VERBS))
    lines = [USAGE, "", "mrp builds evaluations of agents: what changed is run, the rest is reused.", "", "verbs:"]
    lines += [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    lines += ["", "`mrp VERB --help` tells more. `-C DIR` works from anywhere; `mrp --version` prints the version."]
    return "\n".join(lines)


def nearest(word: str, known: Iterable[str], prog: str) -> str:
    """`; did you mean X?`, or where to look when nothing is near."""
    return f"; {did_you_mean(word, sorted(known)) or f'see {prog} --help'}"


def _split(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """The words before the verb, the verb, the words after it."""
    before: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            return [], None, []
        if word in ("-V", "--version"):
            print(f"mrp {VERSION}")
            raise SystemExit(0)
        if word in ("-C", "--directory"):
            if not words:
                raise UsageError(f"{word} needs a folder after it: {USAGE.removeprefix('usage: ')}")
            before += [word, words.pop(0)]
        elif word.startswith("-"):
            before.append(word)
        elif word in VERBS:
            return before, word, words
        elif word == "help":
            return ([], words[0], ["--help"]) if words and words[0] in VERBS else ([], None, [])
        else:
            raise UsageError(f"mrp has no verb {word!r}{nearest(word, VERBS, 'mrp')}")
    if before:
        raise UsageError(f"a verb is missing after {' '.join(before)}; see mrp --help")
    return before, None, []
