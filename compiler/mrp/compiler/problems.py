"""All that is wrong with a workspace, gathered while it is read, so that a user sees it in one go."""

from collections.abc import Iterable
from dataclasses import replace

from mrp.specs.errors import Diagnostic, PolicyError, Span, SpecError
from mrp.specs.yaml import Sources


class Problems:
    """Collects diagnostics; knows the texts of all documents, so that each shows its line."""

    def __init__(self) -> None:
        self.sources = Sources()
        self._found: list[Diagnostic] = []
        self._refused: list[Diagnostic] = []

    def add(self, span: Span, message: str, hint: str = "") -> None:
        """One error of the user's documents at `span`."""
        self._found.append(self.sources.diagnostic(span, message, hint))

    def extend(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Errors that another room found."""
        self._found.extend(diagnostics)

    def refuse(self, span: Span, message: str, hint: str = "", *, show: bool = True) -> None:
        """One thing that policy does not allow, written at `span`; `show` is false where its line must not be shown."""
        found = self.sources.diagnostic(span, message, hint)
        self._refused.append(found if show else replace(found, source=""))

    def __len__(self) -> int:
        return len(self._found) + len(self._refused)

    def raise_if_any(self) -> None:
        """Raises SpecError with every error; when there is none, PolicyError with every refusal."""
        if self._found:
            raise SpecError(self._found)
        if self._refused:
            raise PolicyError(self._refused)
