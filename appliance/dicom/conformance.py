"""The text of the conformance page on query keys, made from the attribute table.

Must not hold a key of its own: `python -m appliance.dicom.conformance` prints the page, and a test
keeps the page in docs equal to it.
"""

import sys

from appliance.dicom.attributes import ATTRIBUTES, Attribute, KeyType, Level, level_of

_HEAD = """\
# Query keys

Which attributes C-FIND, C-MOVE and C-GET of this archive match and return. This page is made from
the attribute table in `appliance/dicom/attributes.py`; a test keeps the two equal.

Patient Root has four levels, Study Root three: there the patient's attributes belong to the study.
U is the unique key of its level, R a required key, O an optional one (PS3.4 C.2.2.1, C.6). A
*computed* key is answered from what is stored now and is no part of any instance. A key that is not
here is ignored, and the answers then carry status 0xFF01.

Matching is that of PS3.4 C.2.2.2:

@RULES@
Date and time keys are matched each for itself, not combined. Dates are never shifted.

"""


_RULES = (
    (
        "any",
        'no value, or `*`: everything, the absent value too; `""` (two quotation marks): no value',
    ),
    (
        "PN",
        (
            "case and width do not count; a key without `=` may match any of the three component "
            "groups; with `=`, each group that is not empty matches its own; `*` and `?`"
        ),
    ),
    (
        "AE CS LO LT SH ST UC UR UT",
        (
            "case-sensitive; `*` and `?`; several values joined by a backslash (not LT ST UR UT): "
            "any of them"
        ),
    ),
    ("UI", "a UID or a list of them"),
    (
        "DA TM DT",
        (
            "a value, or a range with one or both ends; a value of less precision covers what it "
            "leaves open; `1997.04.22` and `10:30:00` are understood; offsets of a DT count where "
            "both sides have one"
        ),
    ),
    ("IS DS US", "equal as numbers"),
    ("SQ", "one stored item must match every key of the item asked for"),
)


def _line(attribute: Attribute) -> str:
    group, element = attribute.tag >> 16, attribute.tag & 0xFFFF
    kind = "computed" if attribute.computed else attribute.key.value
    return f"| ({group:04X},{element:04X}) | {attribute.keyword} | {attribute.vr} | {kind} |"


def _order(attribute: Attribute) -> tuple[int, int]:
    rank = {KeyType.UNIQUE: 0, KeyType.REQUIRED: 1, KeyType.OPTIONAL: 2}[attribute.key]
    return rank + attribute.computed, attribute.tag


def query_keys_page() -> str:
    """Return the whole page in Markdown."""
    rules = "".join(f"| {vr} | {rule} |\n" for vr, rule in _RULES)
    parts = [_HEAD.replace("@RULES@", f"| key's VR | rule |\n|---|---|\n{rules}")]
    for level in Level:
        rows = sorted((a for a in ATTRIBUTES if a.level is level), key=_order)
        root = level_of(rows[0].tag, patient_root=False)
        note = " (Study Root: STUDY)" if root is not level else ""
        parts.append(f"## {level.value}{note}\n\n| tag | keyword | VR | key |\n|---|---|---|---|\n")
        parts.append("\n".join(_line(attribute) for attribute in rows) + "\n\n")
    return "".join(parts).rstrip("\n") + "\n"


if __name__ == "__main__":
    sys.stdout.write(query_keys_page())
