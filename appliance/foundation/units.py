"""Sizes, durations and rates as people write them, and as people read them."""

import re

_SIZE_BYTES = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_DURATION_S = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "y": 365.25 * 86400.0}
_RATE_BYTES_PER_S = {
    "bit/s": 0.125, "kbit/s": 125.0, "mbit/s": 125_000.0, "gbit/s": 125_000_000.0,
    "b/s": 1.0, "kb/s": 1e3, "mb/s": 1e6, "kib/s": 1024.0, "mib/s": 1048576.0,
}  # fmt: skip
_NUMBER_UNIT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z/]*)\s*$")


def _split(text: str, kind: str, example: str) -> tuple[float, str]:
    match = _NUMBER_UNIT.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a {kind}; write it like {example!r}")
    return float(match[1]), match[2]


def parse_size_bytes(text: str | int) -> int:
    """Return bytes for `"64 MiB"`, `"2 TB"` or a plain number of bytes; ValueError else."""
    if isinstance(text, int):
        return text
    number, unit = _split(text, "size", "64 MiB")
    factor = _SIZE_BYTES.get(unit.upper() or "B")
    if factor is None:
        raise ValueError(f"{text!r} has no size unit that is known; write it like '64 MiB'")
    return int(number * factor)


def parse_duration_s(text: str | float) -> float:
    """Return seconds for `"10 s"`, `"5 min"`, `"30 d"`, `"5 y"` or a number; ValueError else."""
    if isinstance(text, int | float):
        return float(text)
    number, unit = _split(text, "duration", "10 s")
    factor = _DURATION_S.get(unit or "s")
    if factor is None:
        raise ValueError(f"{text!r} has no time unit that is known; write ms, s, min, h, d or y")
    return number * factor


def parse_rate_bytes_per_s(text: str) -> float | None:
    """Return bytes a second for `"50 Mbit/s"`; None for `"off"` (unlimited); ValueError else."""
    if text.strip().lower() == "off":
        return None
    number, unit = _split(text, "rate", "50 Mbit/s")
    factor = _RATE_BYTES_PER_S.get(unit.lower())
    if factor is None:
        raise ValueError(f"{text!r} has no rate unit that is known; write it like '50 Mbit/s'")
    if number <= 0:
        raise ValueError(f"{text!r} would send nothing; write 'off' for no limit")
    return number * factor


def format_size(size_bytes: float) -> str:
    """Return a size for people, as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def format_duration(duration_s: float) -> str:
    """Return a duration for people, as `2 h 05 min`."""
    whole = round(duration_s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
