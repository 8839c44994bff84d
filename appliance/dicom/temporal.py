"""Dates and times of queries and stored values as comparable bounds (PS3.5 6.2, PS3.4 C.2.2.2).

Must not shift a stored date: offsets from UTC count only where both sides of a comparison have one.
Invariant: bounds are fixed-width digits, so that text order is time order.
"""

import datetime as dt
import re
from typing import NamedTuple

_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII)
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?)?", re.ASCII)
_DATETIME = re.compile(
    r"(\d{4})(\d{2})?(\d{2})?(\d{2})?(\d{2})?(\d{2})?(?:\.(\d{1,6}))?([+-]\d{4})?", re.ASCII
)
_RANGE = re.compile(
    r"(\d{4,14}(?:\.\d{1,6})?(?:[+-]\d{4})?)?-(\d{4,14}(?:\.\d{1,6})?(?:[+-]\d{4})?)?", re.ASCII
)
OFFSET_MAX = 1400
"""An offset from UTC lies between -1200 and +1400 (PS3.5 6.2 DT)."""

_FIRST = ("0001", "01", "01", "00", "00", "00")
_LAST = ("9999", "12", "31", "23", "59", "59")


class Span(NamedTuple):
    """The instants that a value of limited precision covers; offset in minutes, None if unsaid."""

    low: str
    high: str
    offset_minutes: int | None = None


def date_span(text: str) -> Span | None:
    """Return the span of a DA, the form of ACR-NEMA ("1997.04.22") included; None for no date."""
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return None
    digits = "".join(match.groups())
    return Span(digits, digits)


def time_span(text: str) -> Span | None:
    """Return the span of a TM: "07" covers 070000.000000 to 075959.999999; None for no time."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    hour, minute, second, fraction = match.groups()
    fraction = fraction or ""
    low = hour + (minute or "00") + (second or "00") + "." + fraction.ljust(6, "0")
    high = hour + (minute or "59") + (second or "59") + "." + fraction.ljust(6, "9")
    return Span(low, high)


def datetime_span(text: str) -> Span | None:
    """Return the span of a DT with its offset; None for no date and time."""
    match = _DATETIME.fullmatch(text.strip())
    if match is None:
        return None
    *parts, fraction, offset = match.groups()
    known = [part for part in parts if part is not None]
    if offset is not None and abs(int(offset)) > OFFSET_MAX:
        return None
    low = "".join(known + list(_FIRST[len(known) :]))
    high = "".join(known + list(_LAST[len(known) :]))
    if 1 < len(known) < 3:
        high = high[:6] + f"{_days_in_month(int(high[:4]), int(high[4:6])):02d}" + high[8:]
    fraction = fraction or ""
    minutes = None
    if offset is not None:
        minutes = int(offset[1:3]) * 60 + int(offset[3:5])
        minutes = -minutes if offset[0] == "-" else minutes
    return Span(low + "." + fraction.ljust(6, "0"), high + "." + fraction.ljust(6, "9"), minutes)


def _days_in_month(year: int, month: int) -> int:
    if not 1 <= month <= 12:
        return 31
    first_of_next = dt.date(year + month // 12, month % 12 + 1, 1) if year < 9999 else None
    return (first_of_next - dt.timedelta(days=1)).day if first_of_next else 31


def in_utc(bound: str, offset_minutes: int) -> str:
    """Return a bound of a DT with its offset taken away; the bound itself where that overflows."""
    try:
        moment = dt.datetime.strptime(bound, "%Y%m%d%H%M%S.%f")  # noqa: DTZ007 - made UTC here
        moment -= dt.timedelta(minutes=offset_minutes)
    except (ValueError, OverflowError):
        return bound
    return f"{moment.year:04d}" + moment.strftime("%m%d%H%M%S.%f")


_SPANS = {"DA": date_span, "TM": time_span, "DT": datetime_span}


def span_of(vr: str, text: str) -> Span | None:
    """Return the span of a stored value of VR DA, TM or DT."""
    return _SPANS[vr](text)


def range_of(vr: str, text: str) -> tuple[Span | None, Span | None] | None:
    """Return the two ends of "a-b", "-b" or "a-"; None where it is not such a range.

    In a DT a hyphen may also start an offset: one that is a valid offset is one (PS3.5 6.2).
    """
    text = text.strip()
    if "-" not in text or text == "-":
        return None
    if vr == "DT":
        if datetime_span(text) is not None:
            return None
        match = _RANGE.fullmatch(text)
        ends = match.groups() if match else None
    else:
        low, _, high = text.partition("-")
        ends = (low.strip() or None, high.strip() or None)
    if ends is None:
        return None
    spans = [span_of(vr, end) if end else None for end in ends]
    if any(end and span is None for end, span in zip(ends, spans, strict=True)):
        return None
    return spans[0], spans[1]
