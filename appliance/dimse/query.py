"""From the identifier of a C-FIND, C-MOVE or C-GET to the archive's query.

Owns the rules of PS3.4 C.4.1.2 and C.4.2.2 that depend on the SOP class: which levels there are,
and which unique keys an identifier must have. Must not match anything, nor log a key.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

from appliance.archive.extent import Dataset
from appliance.archive.query import Query
from appliance.dicom import uid
from appliance.dicom.attributes import BY_TAG, Level
from appliance.dicom.elements import Value
from appliance.dicom.identifier import Identifier, parse_identifier
from appliance.dimse.association import Association
from appliance.dimse.commands import Command
from appliance.foundation.errors import DatasetMismatch

PATIENT_ID = 0x00100020
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E
SOP_INSTANCE_UID = 0x00080018

_PATIENT_ROOT = frozenset({uid.PATIENT_ROOT_FIND, uid.PATIENT_ROOT_MOVE, uid.PATIENT_ROOT_GET})
_UNIQUE_KEYS = {
    Level.PATIENT: PATIENT_ID,
    Level.STUDY: STUDY_INSTANCE_UID,
    Level.SERIES: SERIES_INSTANCE_UID,
    Level.INSTANCE: SOP_INSTANCE_UID,
}
_LEVELS = {"PATIENT": tuple(Level), "STUDY": tuple(Level)[1:]}
_RELATIONAL_BYTE = 0
_ANSWERED_AT_EVERY_LEVEL = frozenset({
    0x00080005,  # SpecificCharacterSet
    0x00080054,  # RetrieveAETitle
    0x00080056,  # InstanceAvailability
    0x00080201,  # TimezoneOffsetFromUTC
})  # fmt: skip

RELATIONAL = b"\x01"
"""The SOP Class Extended Negotiation we accept of every Query/Retrieve class (PS3.4 C.5)."""


class Instance(Protocol):
    """What a retrieve needs to know of an instance that it is to send."""

    @property
    def sop_instance_uid(self) -> str:
        """The SOP Instance UID."""

    @property
    def sop_class_uid(self) -> str:
        """The SOP Class UID."""

    @property
    def transfer_syntax_uid(self) -> str:
        """The transfer syntax in which it is stored."""

    @property
    def online(self) -> bool:
        """Whether it is expected to be at hand without asking the bucket."""


class Opened(Protocol):
    """An instance at hand."""

    @property
    def dataset(self) -> Dataset:
        """Its dataset; valid until the next instance is asked for."""


class Finder(Protocol):
    """What C-FIND needs of the archive."""

    def find(self, query: Query, retrieve_ae_title: str) -> Iterator[dict[int, Value]]:
        """Yield the answers; raises Refused for an identifier that does not fit."""


class Retriever(Protocol):
    """What C-MOVE and C-GET need of the archive."""

    def select(self, query: Query) -> Sequence[Any]:
        """Return the Instances that the query names; raises Refused."""

    def open_all(self, wanted: Sequence[Any]) -> Generator[tuple[Any, Any], None, None]:
        """Yield (Instance, Opened or AzekuraError) as each is at hand; close() ends the work."""


def read_find(association: Association, command: Command) -> Query:
    """Read and judge the identifier of a C-FIND.

    Raises DatasetNotUnderstood, DatasetMismatch when it does not fit its SOP class, LimitExceeded.
    """
    query = _read(association, command)
    if not query.relational:
        for level in _above(query):
            if not _is_single(query.identifier, level):
                raise DatasetMismatch("query", query.level, f"no single unique key of {level}")
    return query


def read_retrieve(association: Association, command: Command) -> Query:
    """Read and judge the identifier of a C-MOVE or C-GET; raises as `read_find` does.

    A Patient ID is not insisted on above a study: the UIDs name it, and many peers leave it out.
    """
    query = _read(association, command)
    if not query.identifier.keys.get(_UNIQUE_KEYS[Level(query.level)]):
        raise DatasetMismatch("retrieve", query.level, "the unique key of its level is empty")
    if not query.relational:
        for level in _above(query):
            if level is not Level.PATIENT and not _is_single(query.identifier, level):
                raise DatasetMismatch("retrieve", query.level, f"no single unique key of {level}")
    return query


def unanswered_keys(query: Query) -> list[int]:
    """Return the requested tags that answers of the query's level can't hold."""
    levels = list(Level)
    depth = levels.index(Level(query.level))
    below = [
        tag
        for tag in query.identifier.requested
        if tag not in _ANSWERED_AT_EVERY_LEVEL
        and (attribute := BY_TAG.get(tag)) is not None
        and levels.index(attribute.level) > depth
    ]
    return [*query.identifier.unsupported, *below]


def _read(association: Association, command: Command) -> Query:
    context = association.contexts[command.context_id]
    peer = association.peer
    identifier = parse_identifier(
        association.read_dataset(),
        context.transfer_syntax,
        peer.character_set if peer is not None else "",
    )
    root = "PATIENT" if context.abstract_syntax in _PATIENT_ROOT else "STUDY"
    if identifier.level not in _LEVELS[root]:
        raise DatasetMismatch("query", identifier.level, "no level of this SOP class")
    extended = association.extended.get(context.abstract_syntax, b"")
    relational = len(extended) > _RELATIONAL_BYTE and extended[_RELATIONAL_BYTE] == 1
    return Query(root, identifier.level, identifier, relational, association.calling_ae)


def _above(query: Query) -> Sequence[Level]:
    levels = _LEVELS[query.root]
    return levels[: levels.index(Level(query.level))]


def _is_single(identifier: Identifier, level: Level) -> bool:
    value = identifier.keys.get(_UNIQUE_KEYS[level], "")
    if not isinstance(value, str) or not value:
        return False
    return not any(mark in value for mark in "\\*?")
