"""Values of the index as the DICOM JSON Model (PS3.18 annex F).

Must not read bytes. Invariant: text is Unicode already, so (0008,0005) always says ISO_IR 192.
"""

import math
from collections.abc import Mapping
from typing import Any

from appliance.dicom.elements import NUMBER_FORMATS, Value
from appliance.dicom.identifier import vr_of

CHARACTER_SET = 0x00080005
UTF_8 = "ISO_IR 192"
ONE_VALUE_VRS = frozenset({"ST", "LT", "UT", "UR"})
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_FLOAT_VRS = frozenset({"DS", "FL", "FD", "OD", "OF"})
_EXTRA_VRS = {0x00081190: "UR"}  # RetrieveURL


def json_dataset(values: Mapping[int, Value]) -> dict[str, Any]:
    """Return a dataset's JSON object, by ascending tag; tags without a VR here are left out."""
    found = {}
    for tag in sorted(values):
        vr = _EXTRA_VRS.get(tag) or vr_of(tag)
        if vr:
            found[f"{tag:08X}"] = json_element(vr, UTF_8 if tag == CHARACTER_SET else values[tag])
    return found


def json_element(vr: str, value: Value) -> dict[str, Any]:
    """Return an element's JSON object; an empty value gives none."""
    if vr == "SQ":
        items = value if isinstance(value, list) else []
        return {"vr": vr, "Value": [json_dataset(item) for item in items]} if items else {"vr": vr}
    if not isinstance(value, str) or not value:
        return {"vr": vr}
    parts = [value] if vr in ONE_VALUE_VRS else value.split("\\")
    return {"vr": vr, "Value": [json_value(vr, part) for part in parts]}


def json_value(vr: str, text: str) -> Any:
    """Return one value: a number where the VR has numbers, null where it is empty.

    Text that is no number stays text, as the standard allows for IS and DS (F.2.3).
    """
    if not text:
        return None
    if vr == "PN":
        return json_name(text)
    if vr in _FLOAT_VRS:
        return _float(text)
    if vr == "IS" or vr in NUMBER_FORMATS:
        try:
            return int(text)
        except ValueError:
            return _float(text)
    return text


def json_name(text: str) -> dict[str, str]:
    """Return a person's name by its component groups."""
    groups = zip(_NAME_GROUPS, text.split("="), strict=False)
    return {name: group for name, group in groups if group}


def _float(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
