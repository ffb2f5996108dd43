"""Texts that look like secrets: keys and tokens in the forms that well-known services give them."""

import re

_SECRETS: tuple[tuple[str, str], ...] = (
    ("an OpenAI or Anthropic key", r"sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}"),
    ("a GitHub token", r"(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,})"),
    ("a GitLab token", r"glpat-[A-Za-z0-9_-]{20,}"),
    ("an AWS access key", r"(?:AKIA|ASIA)[0-9A-Z]{16}"),
    ("a Google API key", r"AIza[0-9A-Za-z_-]{35}"),
    ("a Hugging Face token", r"hf_[A-Za-z0-9]{30,}"),
    ("a Slack token", r"xox[abprs]-[A-Za-z0-9-]{10,}"),
    ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
)
_PATTERNS = tuple((what, re.compile(rf"(?<![A-Za-z0-9_]){pattern}")) for what, pattern in _SECRETS)


def secret_in(text: str) -> str | None:
    """What kind of secret `text` seems to hold, or None. It never returns any part of the text."""
    return next((what for what, pattern in _PATTERNS if pattern.search(text)), None)
