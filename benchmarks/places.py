"""Results name no hosts and no folders of the machine that they were made on."""

import re


def without_places(text: str) -> str:
    """`text` with the hosts of addresses and the folders of absolute paths taken out."""
    return re.sub(r"(?<![\w.])/(?:[^/\s'\":]+/)+", ".../", re.sub(r"\w+://[^/\s]+", "...", text))
