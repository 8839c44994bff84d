"""How names and texts are made comparable: one folding for queries, index keys and stored values.

Must not know about matching rules. Invariant: folding is idempotent and independent of locale.
"""

import re
import unicodedata

_AROUND_CARET = re.compile(r" *\^ *")


def fold_literal(text: str) -> str:
    """Return text without differences of case and width, keeping its ends."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def fold(text: str) -> str:
    """Return text without differences of case, width, outer spaces and trailing carets.

    Trailing empty components of a person name mean nothing (PS3.5 6.2.1.1).
    """
    folded = fold_literal(text)
    if "^" in folded:
        folded = _AROUND_CARET.sub("^", folded)
    return folded.rstrip(" ^\0").lstrip(" ")


def name_groups(text: str) -> list[str]:
    """Return the folded component groups of one person name: alphabetic, ideographic, phonetic."""
    return [fold(group) for group in text.split("=")]
