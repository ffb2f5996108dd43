"""Sizes and durations as people write them (`4GiB`, `30s`) and as keys hold them (bytes, seconds)."""

import re
from decimal import Decimal

_SIZE_UNITS = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_DURATION_UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_QUANTITY = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([A-Za-z]+)\Z")


def parse_size(text: str) -> int:
    """Bytes from `512MiB`, `4 GiB`, `100KB`; raises ValueError that names the units."""
    match = _QUANTITY.match(text)
    unit = _SIZE_UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise ValueError(f"`{text}` is not a size; write a number and one of {', '.join(_SIZE_UNITS)}, like 4GiB")
    size = Decimal(match[1]) * unit
    if size != size.to_integral_value():
        raise ValueError(f"`{text}` is not a whole number of bytes")
    return int(size)


def parse_duration(text: str) -> Decimal:
    """Seconds from `30s`, `1.5m`, `500ms`; raises ValueError that names the units."""
    match = _QUANTITY.match(text)
    unit = _DURATION_UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise ValueError(
            f"`{text}` is not a duration; write a number and one of {', '.join(_DURATION_UNITS)}, like 30s"
        )
    return Decimal(match[1]) * unit


def size_text(size: int) -> str:
    """`size` bytes with the largest unit that keeps it exact: 4294967296 is `4GiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def duration_text(seconds: Decimal) -> str:
    """`seconds` with the largest unit in which they are whole: 7200 is `2h`."""
    for unit in ("d", "h", "m", "s", "ms"):
        count = seconds / _DURATION_UNITS[unit]
        if seconds and count == count.to_integral_value():
            return f"{int(count)}{unit}"
    return f"{seconds}s"
