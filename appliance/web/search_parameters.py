"""The parameters of a search (PS3.18 section 8.3.4): from the query string to an identifier.

Must not match anything, nor log a value. Invariant: what is not supported is named, never silently
taken for supported: a key that the archive does not match ends up in `unsupported`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from appliance.dicom.attributes import ATTRIBUTES, BY_KEYWORD, BY_TAG, Level
from appliance.dicom.elements import Value
from appliance.dicom.identifier import Identifier, vr_of
from appliance.web.problem import BadRequest

PARAMETERS_MAX = 256
ALL = "all"
STUDY_UID = 0x0020000D
SERIES_UID = 0x0020000E
SOP_UID = 0x00080018
RETRIEVE_URL = 0x00081190
_UNICODE = "ISO_IR 192"
_LEVELS = (Level.STUDY, Level.SERIES, Level.INSTANCE)

_DEFAULT_KEYWORDS = {
    Level.STUDY: (
        "StudyDate StudyTime AccessionNumber InstanceAvailability ModalitiesInStudy "
        "ReferringPhysicianName PatientName PatientID PatientBirthDate PatientSex "
        "StudyInstanceUID StudyID StudyDescription NumberOfStudyRelatedSeries "
        "NumberOfStudyRelatedInstances"
    ),
    Level.SERIES: (
        "Modality InstanceAvailability SeriesDescription SeriesInstanceUID SeriesNumber "
        "NumberOfSeriesRelatedInstances PerformedProcedureStepStartDate "
        "PerformedProcedureStepStartTime RequestAttributesSequence"
    ),
    Level.INSTANCE: (
        "SOPClassUID SOPInstanceUID InstanceAvailability InstanceNumber Rows Columns "
        "BitsAllocated NumberOfFrames"
    ),
}
_DEFAULT = {
    level: tuple(BY_KEYWORD[keyword].tag for keyword in keywords.split())
    for level, keywords in _DEFAULT_KEYWORDS.items()
}


class Search(NamedTuple):
    """One search. `shown_empty`: requested tags that are answered without a value too.

    limit: None for no limit. unsupported: the names of keys that are not matched.
    """

    identifier: Identifier
    shown_empty: frozenset[int]
    limit: int | None
    offset: int
    fuzzy: bool
    unsupported: list[str]


def read_search(
    level: Level, path_uids: dict[int, str], parameters: Sequence[tuple[str, str]]
) -> Search:
    """Return the search that path and parameters describe; BadRequest."""
    if len(parameters) > PARAMETERS_MAX:
        raise _bad("there are too many parameters")
    reading = _Reading(level, path_uids)
    for name, value in parameters:
        reading.add(name, value)
    return reading.search()


class _Reading:
    """A search while its parameters are read."""

    def __init__(self, level: Level, path_uids: dict[int, str]) -> None:
        self._level = level
        self._path_uids = path_uids
        self._keys: dict[int, Value] = {}
        self._wanted = dict.fromkeys(_default_tags(level, path_uids))
        self._shown = set(self._wanted)
        self._unsupported: list[str] = []
        self._limit: int | None = None
        self._offset = 0
        self._fuzzy = False

    def add(self, name: str, value: str) -> None:
        """Take in a parameter; BadRequest."""
        match name:
            case "limit":
                self._limit = _count(name, value)
            case "offset":
                self._offset = _count(name, value)
            case "fuzzymatching":
                self._fuzzy = _flag(name, value)
            case "includefield":
                fields = _fields(self._level, value)
                self._wanted |= dict.fromkeys(fields)
                if ALL not in value.split(","):
                    self._shown |= set(fields)
            case "emptyvaluematching" | "multiplevaluematching":
                if _flag(name, value):
                    self._unsupported.append(name)
            case "accept" | "charset":
                pass
            case _:
                _add_key(name, value, self._keys, self._unsupported)

    def search(self) -> Search:
        """Return the search; BadRequest when path and parameters disagree."""
        for tag, uid in self._path_uids.items():
            if self._keys.get(tag, uid) != uid:
                raise _bad("the path and the parameters name different UIDs")
            self._keys[tag] = uid
        supported = _answerable(self._level, self._keys, self._unsupported)
        for tag in supported:
            self._wanted.setdefault(tag)
            self._shown.add(tag)
        every = {**dict.fromkeys(self._wanted, ""), **supported}
        identifier = Identifier(self._level.value, every, _UNICODE, list(every), [])
        return Search(
            identifier, frozenset(self._shown), self._limit, self._offset, self._fuzzy,
            self._unsupported,
        )  # fmt: skip


def _default_tags(level: Level, path_uids: dict[int, str]) -> list[int]:
    """Return what is answered unasked: of every level that the path does not name, too."""
    found = [STUDY_UID]
    for each, uid in ((Level.STUDY, STUDY_UID), (Level.SERIES, SERIES_UID)):
        if each is level:
            break
        found += [uid] if uid in path_uids else _DEFAULT[each]
    return [*found, *_DEFAULT[level]]


def _answerable(level: Level, keys: dict[int, Value], unsupported: list[str]) -> dict[int, Value]:
    """Return the keys that answers of the level can hold; the others are unsupported."""
    found = {}
    for tag, value in keys.items():
        attribute = BY_TAG[tag]
        if _is_at_or_above(attribute.level, level):
            found[tag] = value
        else:
            unsupported.append(attribute.keyword)
    return found


def _is_at_or_above(level: Level, asked: Level) -> bool:
    return level is Level.PATIENT or _LEVELS.index(level) <= _LEVELS.index(asked)


def _add_key(name: str, value: str, keys: dict[int, Value], unsupported: list[str]) -> None:
    path = [_tag(step) for step in name.split(".")]
    if None in path:
        raise _bad("a parameter is neither an attribute nor one of the standard's")
    tags = [tag for tag in path if tag is not None]
    if tags[0] not in BY_TAG or not all(vr_of(tag) for tag in tags):
        unsupported.append(name)
        return
    if vr_of(tags[-1]) == "UI":
        value = value.replace(",", "\\")
    if len(tags) == 1:
        known = keys.get(tags[0])
        if known is not None and vr_of(tags[0]) == "UI":
            value = f"{known}\\{value}"
        elif known is not None:
            raise _bad("a key is given twice")
        keys[tags[0]] = value
        return
    items = keys.setdefault(tags[0], [{}])
    for tag in tags[1:-1]:
        if not isinstance(items, list):
            raise _bad("a key is given twice")
        items = items[0].setdefault(tag, [{}])
    if not isinstance(items, list):
        raise _bad("a key is given twice")
    items[0][tags[-1]] = value


def _fields(level: Level, value: str) -> list[int]:
    """Return the tags of an includefield; one that no answer holds is left out."""
    found: list[int] = []
    for name in value.split(","):
        if name == ALL:
            found += [each.tag for each in ATTRIBUTES if _is_at_or_above(each.level, level)]
            continue
        tag = _tag(name.partition(".")[0])
        if tag is None:
            raise _bad("includefield names no attribute")
        attribute = BY_TAG.get(tag)
        if attribute is not None and _is_at_or_above(attribute.level, level):
            found.append(tag)
    return found


def _tag(name: str) -> int | None:
    """Return the tag of a keyword or of eight hexadecimal digits; one of the standard's."""
    attribute = BY_KEYWORD.get(name)
    if attribute is not None:
        return attribute.tag
    if len(name) == 8:
        try:
            return int(name, 16)
        except ValueError:
            pass
    # Loaded late: 5,000 keywords that are seldom asked for.
    from pydicom.datadict import tag_for_keyword  # noqa: PLC0415

    found: int | None = tag_for_keyword(name)
    return found


def _count(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise _bad(f"{name} must be a number")
    return int(value)


def _flag(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise _bad(f"{name} must be true or false")
    return value == "true"


def _bad(cause: str) -> BadRequest:
    return BadRequest("search", cause=cause, hint="docs/conformance/dicomweb.md has what is taken")
