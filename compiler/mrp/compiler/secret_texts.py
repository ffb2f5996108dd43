"""Texts that look like secrets: keys and tokens in the forms that well-known services give them."""

import re

_SECRETS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("an OpenAI or Anthropic key", ("sk-",), r"(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}"),
    ("a GitHub token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"[A-Za-z0-9]{30,}"),
    ("a GitHub token", ("github_pat_",), r"[A-Za-z0-9_]{22,}"),
    ("a GitLab token", ("glpat-",), r"[A-Za-z0-9_-]{20,}"),
    ("an AWS access key", ("AKIA", "ASIA"), r"[0-9A-Z]{16}"),
    ("a Google API key", ("AIza",), r"[0-9A-Za-z_-]{35}"),
    ("a Hugging Face token", ("hf_",), r"[A-Za-z0-9]{30,}"),
    ("a Slack token", ("xoxa-", "xoxb-", "xoxp-", "xoxr-", "xoxs-"), r"[A-Za-z0-9-]{10,}"),
    ("a private key", ("-----BEGIN ",), r"[A-Z ]*PRIVATE KEY-----"),
)
"""What it is, how it may start, and what follows."""

_PATTERNS = tuple(
    (what, re.compile(rf"(?<![A-Za-z0-9_])(?:{'|'.join(starts)}){rest}")) for what, starts, rest in _SECRETS
)
_STARTS = tuple(
    (start.encode(), re.compile(rf"(?<![A-Za-z0-9_]){start}".encode()))
    for _, starts, _ in _SECRETS
    for start in map(str.rstrip, starts)
)


def secret_in(text: str) -> str | None:
    """What kind of secret `text` seems to hold, or None. It never returns any part of the text."""
    return next((what for what, pattern in _PATTERNS if pattern.search(text)), None)


def may_hold_secret(document: bytes) -> bool:
    """Whether any text in a YAML document may be one that `secret_in` names, told from its bytes alone.

    YAML can break up the start of a secret, which has no space in it, only with a backslash.
    """
    return b"\\" in document or any(start in document and word.search(document) for start, word in _STARTS)
