"""The matching rules of PS3.4 C.2.2.2, and what an index may use of a key to narrow its search.

Must not read an index. Invariants: a hint (exact, uids, prefix, low, high) admits at least every
value that matches; only `matches` decides. Matchers are immutable and shared by threads.

Matching is case-sensitive but for PN, as the standard has it. Beyond the standard: a list of values
is accepted for every text VR, and a wildcard in a date.
"""

import re
from collections.abc import Callable, Mapping

from appliance.dicom.attributes import ITEM_VRS
from appliance.dicom.folding import fold, fold_literal, name_groups
from appliance.dicom.temporal import Span, in_utc, range_of, span_of

__all__ = ["Matcher", "Stored", "compile_key", "fold", "name_groups"]

Stored = str | list[dict[int, "Stored"]] | None
"""A stored value: text with its values joined by a backslash, items, or nothing."""

WILDCARD_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
EMPTY_VALUE = '""'
"""Two quotation marks ask for instances without a value (PS3.4 C.2.2.2.7)."""

_ONE_VALUE_VRS = frozenset({"ST", "LT", "UT", "UR"})
_WILDCARD = re.compile(r"([*?]+)")


class Matcher:
    """A compiled key.

    exact: the one value that can match, folded for PN. uids: the list of a UID key. prefix: folded
    text that every match starts with (for PN: one of its groups). low, high: bounds of a date or
    time, inclusive, as digits. universal: everything matches.
    """

    universal: bool = False
    exact: str | None = None
    uids: tuple[str, ...] | None = None
    prefix: str | None = None
    low: str | None = None
    high: str | None = None

    def matches(self, stored: Stored) -> bool:
        """Tell whether a stored value matches."""
        raise NotImplementedError


class Universal(Matcher):
    """Matches everything, an absent value too (C.2.2.2.3)."""

    universal = True

    def matches(self, stored: Stored) -> bool:  # noqa: ARG002
        """Return True."""
        return True


class Empty(Matcher):
    """Matches where there is no value (C.2.2.2.7)."""

    def matches(self, stored: Stored) -> bool:
        """Tell whether the value is absent or empty."""
        return not stored


class _Text(Matcher):
    """Splits the stored text into its values; any of them may match."""

    def __init__(self, vr: str) -> None:
        self._single = vr in _ONE_VALUE_VRS

    def matches(self, stored: Stored) -> bool:
        """Tell whether one of the stored values matches."""
        if not isinstance(stored, str) or not stored:
            return False
        if self._single or "\\" not in stored:
            return self.matches_one(stored)
        return any(self.matches_one(value) for value in stored.split("\\"))

    def matches_one(self, value: str) -> bool:
        """Tell whether one value matches."""
        raise NotImplementedError


def _number(vr: str, text: str) -> str:
    """Return a number's one spelling, so that "007" and "7" are equal; other text as it is."""
    try:
        if vr == "DS":
            return repr(float(text))
        return str(int(text))
    except (ValueError, OverflowError):
        return text


_NUMBER_VRS = frozenset({"IS", "DS", "US", "UL", "SS", "SL"})


class SingleValue(_Text):
    """One value, or any value of a list (C.2.2.2.1)."""

    def __init__(self, vr: str, values: tuple[str, ...]) -> None:
        super().__init__(vr)
        self._vr = vr
        self._numeric = vr in _NUMBER_VRS
        self._values = frozenset(_number(vr, v) if self._numeric else v for v in values)
        if len(self._values) == 1 and not self._numeric:
            self.exact = values[0]
            self.prefix = fold_literal(values[0])

    def matches_one(self, value: str) -> bool:
        """Tell whether the value is one of those asked for; outer spaces don't count."""
        value = value.strip(" \0")
        return (_number(self._vr, value) if self._numeric else value) in self._values


class UidList(_Text):
    """Any UID of a list (C.2.2.2.2)."""

    def __init__(self, uids: tuple[str, ...]) -> None:
        super().__init__("UI")
        self.uids = uids
        self._set = frozenset(uids)
        if len(uids) == 1:
            self.exact = uids[0]

    def matches_one(self, value: str) -> bool:
        """Tell whether the UID is in the list."""
        return value in self._set


class Wildcard(_Text):
    """A value with * and ? (C.2.2.2.4)."""

    def __init__(self, vr: str, value: str) -> None:
        super().__init__(vr)
        self._match = _glob(value, str)
        self.prefix = fold_literal(_WILDCARD.split(value)[0]) or None

    def matches_one(self, value: str) -> bool:
        """Tell whether the whole value fits the pattern."""
        return self._match(value.strip(" \0"))


def _glob(value: str, folding: Callable[[str], str]) -> Callable[[str], bool]:
    """Return a predicate for a wildcard value, in time linear in value times text.

    A regular expression with many stars backtracks without bound; pieces between stars found
    leftmost first do not.
    """
    pieces = value.split("*")
    if len(pieces) == 1:
        whole = _piece(pieces[0], folding)
        return lambda text: whole.fullmatch(text) is not None
    head, tail = _piece(pieces[0], folding), _piece(pieces[-1], folding)
    tail_length = _length(pieces[-1], folding)
    middle = [_piece(piece, folding) for piece in pieces[1:-1] if piece]

    def matches(text: str) -> bool:
        start = head.match(text)
        if start is None:
            return False
        position, end = start.end(), len(text) - tail_length
        if position > end or tail.fullmatch(text, end) is None:
            return False
        for piece in middle:
            found = piece.search(text, position, end)
            if found is None:
                return False
            position = found.end()
        return True

    return matches


def _piece(piece: str, folding: Callable[[str], str]) -> re.Pattern[str]:
    pattern = ".".join(re.escape(folding(part)) for part in piece.split("?"))
    return re.compile(pattern, re.DOTALL)


def _length(piece: str, folding: Callable[[str], str]) -> int:
    parts = piece.split("?")
    return sum(len(folding(part)) for part in parts) + len(parts) - 1


class PersonName(_Text):
    """A name in its three component groups, without regard to case and width (C.2.2.2.1.1).

    A key without "=" may match any stored group: kana or kanji alone find a person. With "=", each
    group that is not empty must match its own.
    """

    def __init__(self, value: str) -> None:
        super().__init__("PN")
        groups = value.split("=")
        self._any_group = len(groups) == 1
        self._keys = [_name_key(group) for group in groups]
        for group, key in zip(groups, self._keys, strict=True):
            if key is None:
                continue
            literal, *rest = _WILDCARD.split(group)
            if rest:
                self.prefix = fold(literal) or None
            else:
                self.exact = self.prefix = fold(group)
            if self.prefix:
                break
        self.universal = all(key is None for key in self._keys)

    def matches(self, stored: Stored) -> bool:
        """Tell whether one of the stored names matches."""
        return self.universal or super().matches(stored)

    def matches_one(self, value: str) -> bool:
        """Tell whether one name matches."""
        groups = name_groups(value)
        if self._any_group:
            key = self._keys[0]
            return key is None or any(key(group) for group in groups)
        groups += [""] * (len(self._keys) - len(groups))
        return all(
            key is None or key(group) for key, group in zip(self._keys, groups, strict=False)
        )


def _name_key(group: str) -> Callable[[str], bool] | None:
    group = group.strip(" ")
    if not group.strip("*^ "):
        return None
    if "*" not in group and "?" not in group:
        wanted = fold(group)
        return lambda text: text == wanted
    matches = _glob(re.sub(r" *\^ *", "^", group).rstrip("^"), fold_literal)
    # "Yamada" is "Yamada^": trailing components that are empty may be left out.
    return lambda text: matches(text) or ("^" in group and matches(text + "^"))


class Range(Matcher):
    """A date, time or date and time between two ends, each of which may be open (C.2.2.2.5).

    A single value is the range of its own precision.
    """

    def __init__(self, vr: str, low: Span | None, high: Span | None) -> None:
        self._vr = vr
        self._low, self._high = low, high
        if vr != "DT":
            self.low = low.low if low else None
            self.high = high.high if high else None
            if self.low == self.high:
                self.exact = self.low

    def matches(self, stored: Stored) -> bool:
        """Tell whether one of the stored values lies in the range."""
        if not isinstance(stored, str) or not stored:
            return False
        return any(self._holds(value) for value in stored.split("\\"))

    def _holds(self, value: str) -> bool:
        span = span_of(self._vr, value)
        if span is None:
            return False
        low, high = self._low, self._high
        return (low is None or _first(low, span) <= _first(span, low)) and (
            high is None or _first(span, high) <= _last(high, span)
        )


def _first(span: Span, other: Span) -> str:
    """Return the first instant of a span, in UTC where both sides say their offset."""
    if span.offset_minutes is None or other.offset_minutes is None:
        return span.low
    return in_utc(span.low, span.offset_minutes)


def _last(span: Span, other: Span) -> str:
    """Return the last instant of a span, in UTC where both sides say their offset."""
    if span.offset_minutes is None or other.offset_minutes is None:
        return span.high
    return in_utc(span.high, span.offset_minutes)


class Sequence(Matcher):
    """Any stored item in which every key of the item asked for matches (C.2.2.2.6)."""

    def __init__(self, keys: Mapping[int, Matcher]) -> None:
        self.keys = {tag: key for tag, key in keys.items() if not key.universal}
        self.universal = not self.keys

    def matches(self, stored: Stored) -> bool:
        """Tell whether one of the stored items matches all keys."""
        if self.universal:
            return True
        if not isinstance(stored, list):
            return False
        return any(
            all(key.matches(item.get(tag)) for tag, key in self.keys.items()) for item in stored
        )


def compile_key(tag: int, vr: str, value: Stored) -> Matcher:  # noqa: ARG001 - callers know tags
    """Return the matcher of one key of the attribute `tag`.

    value: decoded text, or the items of a sequence key; None and "" are universal. A value that is
    no date where one is due matches nothing.
    """
    if vr == "SQ" or isinstance(value, list):
        return _sequence(value)
    text = (value or "").strip(" \0")
    if not text or text == "*":
        return Universal()
    if text == EMPTY_VALUE:
        return Empty()
    if vr == "UI":
        return UidList(tuple(uid for part in text.split("\\") if (uid := part.strip(" \0"))))
    if vr in ("DA", "TM", "DT"):
        return _temporal(vr, text)
    return _text_keys(vr, text)


def _text_keys(vr: str, text: str) -> Matcher:
    # A list of values of one text VR matches where any of them does (C.2.2.2.8).
    values = (text,) if vr in _ONE_VALUE_VRS else tuple(v.strip() for v in text.split("\\"))
    if vr != "PN" and not any(_has_wildcard(vr, value) for value in values):
        return SingleValue(vr, values)
    keys = [_text_key(vr, value) for value in values if value]
    if not keys:
        return Universal()
    return keys[0] if len(keys) == 1 else Alternatives(keys)


class Alternatives(Matcher):
    """Any of several keys: a list of values of which some have wildcards, or of names."""

    def __init__(self, keys: list[Matcher]) -> None:
        self._keys = keys
        self.universal = any(key.universal for key in keys)

    def matches(self, stored: Stored) -> bool:
        """Tell whether one of the keys matches."""
        return any(key.matches(stored) for key in self._keys)


def _has_wildcard(vr: str, value: str) -> bool:
    return vr in WILDCARD_VRS and ("*" in value or "?" in value)


def _text_key(vr: str, value: str) -> Matcher:
    if vr == "PN":
        return PersonName(value)
    return Wildcard(vr, value) if _has_wildcard(vr, value) else SingleValue(vr, (value,))


def _temporal(vr: str, text: str) -> Matcher:
    ends = range_of(vr, text)
    if ends is not None:
        return Range(vr, *ends)
    span = span_of(vr, text)
    if span is not None:
        return Range(vr, span, span)
    if "*" in text or "?" in text:
        return Wildcard(vr, text)
    return SingleValue(vr, (text,))


def _sequence(value: Stored) -> Matcher:
    if not isinstance(value, list) or not value:
        return Universal()
    keys: dict[int, Matcher] = {}
    for tag, inner in value[0].items():
        vr = "SQ" if isinstance(inner, list) else ITEM_VRS.get(tag, "LO")
        keys[tag] = compile_key(tag, vr, inner)
    return Sequence(keys)
