"""All that is wrong with a workspace, gathered while it is read, so that a user sees it in one go."""

from collections.abc import Iterable
from dataclasses import replace

from mrp.compiler.secret_texts import secret_in
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

    def refuse(self, span: Span, message: str, hint: str = "") -> None:
        """One thing that policy does not allow, written at `span`."""
        self._refused.append(self.sources.diagnostic(span, message, hint))

    def __len__(self) -> int:
        return len(self._found) + len(self._refused)

    def raise_if_any(self) -> None:
        """Raises SpecError with every error; when there is none, PolicyError with every refusal."""
        if self._found:
            raise SpecError(_without_secrets(self._found))
        if self._refused:
            raise PolicyError(_without_secrets(self._refused))


def _without_secrets(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """A line that seems to hold a secret is not shown, whatever the diagnostic is about."""
    return [replace(found, source="") if secret_in(found.source) else found for found in diagnostics]
