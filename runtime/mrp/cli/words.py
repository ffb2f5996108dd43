"""The words of a call before argparse is loaded: the verb, and the folder that -C names.

What is read here means the same as what mrp.cli.parser reads; where that is not sure, the answer is None, and the
parser says what is meant.
"""

TYPE_CHECKING = False  # what `typing` says, without loading it
if TYPE_CHECKING:
    from collections.abc import Sequence

_FOLDER = ("-C", "--directory")
_ASKED = ("-h", "--help", "-V", "--version")


def verb_of(words: "Sequence[str]") -> str | None:
    """The first word that is no option and no folder of -C; None before --help and --version, and without one."""
    rest = iter(words)
    for word in rest:
        if word in _FOLDER:
            next(rest, None)
        elif word in _ASKED:
            return None
        elif not word.startswith("-"):
            return word
    return None


def without_directory(words: "Sequence[str]") -> tuple[str, list[str]] | None:
    """The folder that the last -C names ("." without one) and all other words, in order; None when not sure."""
    folder, others = ".", list[str]()
    rest = iter(words)
    for word in rest:
        if word in _FOLDER:
            named = next(rest, None)
            if named is None or named.startswith("-"):
                return None
            folder = named
        elif word.startswith("--directory="):
            folder = word.removeprefix("--directory=")
        elif word == "--" or (len(word) > 2 and word[0] == "-" and word[1].isalpha()):
            return None  # a bundle of short options may hold -C
        else:
            others.append(word)
    return folder or ".", others
