"""What instances share: attributes are split by level, and each part is stored once, by its hash.

Invariants:
- A CONTEXT or STUDY_SET record is named by the hash of its bytes; it never changes, so that a
  decoded one may be kept as long as memory allows. Nobody changes a decoded one.
- UIDs that are in keys, the SOP Class UID and the character set are in no dictionary.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Final

from appliance.dicom.attributes import BY_TAG, Level
from appliance.index.facts import InstanceFacts
from appliance.index.keys import text_key
from appliance.index.overlay import Overlay
from appliance.index.schema import (
    DIGEST_LENGTH,
    Context,
    Table,
    damaged,
    decode_context,
    decode_study_set,
    encode,
)

CACHED_MAX: Final = 20_000
"""Decoded records kept; a handful for each study somebody is looking at."""

PATIENT_ID: Final = 0x00100020
ISSUER_OF_PATIENT_ID: Final = 0x00100021
MODALITY: Final = 0x00080060
IMPLIED: Final = frozenset({0x00080005, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E})
_LEVEL_OF: Final = {tag: attribute.level for tag, attribute in BY_TAG.items()}
_SEQUENCES: Final = frozenset(tag for tag, attribute in BY_TAG.items() if attribute.vr == "SQ")
_COMPUTED: Final = frozenset(tag for tag, attribute in BY_TAG.items() if attribute.computed)


def digest(body: bytes) -> bytes:
    """Return the name of a record that is named by its content."""
    return hashlib.blake2b(body, digest_size=DIGEST_LENGTH).digest()


def patient_prefix(attributes: dict[int, Any]) -> bytes:
    """Return the patient key of study attributes: PatientID and issuer, as text keys."""
    return text_key(_text(attributes, PATIENT_ID)) + text_key(
        _text(attributes, ISSUER_OF_PATIENT_ID)
    )


def _text(attributes: dict[int, Any], tag: int) -> str:
    value = attributes.get(tag, "")
    return value.strip(" ") if isinstance(value, str) else ""


class Shared:
    """A context with what is derived from it.

    patient: the patient key, without the study that a nameless patient's key ends with.
    identified: there is a PatientID.
    """

    __slots__ = ("context", "identified", "key", "modality", "patient", "study_attributes")

    def __init__(self, key: bytes, context: Context, study_attributes: dict[int, Any]) -> None:
        self.key = key
        self.context = context
        self.study_attributes = study_attributes
        self.patient = patient_prefix(study_attributes)
        self.identified = self.patient[0] != 0
        self.modality = _text(context.attributes, MODALITY)

    def patient_of(self, study: bytes) -> bytes:
        """Return the patient key: without a PatientID, every study is a patient of its own."""
        return self.patient if self.identified else self.patient + study


class ContextCache:
    """Decoded records by their hash, for all transactions of one index.

    Threads: dictionaries are replaced whole when full; a lost entry is only read again.
    """

    def __init__(self) -> None:
        self._shared: dict[bytes, Shared] = {}
        self._study_sets: dict[bytes, dict[int, Any]] = {}

    def shared(self, key: bytes, get: Callable[[Table, bytes], bytes | None]) -> Shared:
        """Return a context; `get` reads a record's body."""
        found = self._shared.get(key)
        if found is None:
            body = get(Table.CONTEXT, key)
            if body is None:
                raise damaged("context", "a record that is named elsewhere is missing")
            context = decode_context(body)
            found = Shared(key, context, self.study_set(context.study_set, get))
            self.keep(found)
        return found

    def study_set(self, key: bytes, get: Callable[[Table, bytes], bytes | None]) -> dict[int, Any]:
        """Return the attributes of levels PATIENT and STUDY."""
        found = self._study_sets.get(key)
        if found is None:
            body = get(Table.STUDY_SET, key)
            if body is None:
                raise damaged("study_set", "a record that is named elsewhere is missing")
            found = decode_study_set(body)
            if len(self._study_sets) >= CACHED_MAX:
                self._study_sets = {}
            self._study_sets[key] = found
        return found

    def keep(self, shared: Shared) -> None:
        """Remember a context that has just been read or made."""
        if len(self._shared) >= CACHED_MAX:
            self._shared = {}
        self._shared[shared.key] = shared


class _Layout:
    """How a set of tags is split by level."""

    __slots__ = ("has_sequences", "number", "own", "series", "study")

    def __init__(self, number: int, tags: tuple[int, ...]) -> None:
        self.number = number
        kept = [tag for tag in sorted(tags) if tag not in IMPLIED and tag not in _COMPUTED]
        self.study = [tag for tag in kept if _LEVEL_OF.get(tag) in (Level.PATIENT, Level.STUDY)]
        self.series = [tag for tag in kept if _LEVEL_OF.get(tag) is Level.SERIES]
        upper = {*self.study, *self.series}
        self.own = [tag for tag in kept if tag not in upper]
        self.has_sequences = any(tag in _SEQUENCES for tag in kept)


class ContextWriter:
    """Splits attributes and stores the shared parts, in one write transaction."""

    def __init__(self, overlay: Overlay, cache: ContextCache) -> None:
        self._overlay = overlay
        self._cache = cache
        self._layouts: dict[tuple[int, ...], _Layout] = {}
        self._known: dict[bytes, Shared] = {}

    def split(self, node: str, facts: InstanceFacts) -> tuple[Shared, list[Any]]:
        """Return the context of an instance, stored, and the values that are its own."""
        attributes: dict[int, Any] = facts.attributes
        tags = tuple(attributes)
        layout = self._layouts.get(tags)
        if layout is None:
            layout = self._layouts[tags] = _Layout(len(self._layouts), tags)
        if layout.has_sequences:
            attributes = {tag: canonical(value) for tag, value in attributes.items()}
        quick = encode(
            (
                layout.number,
                node,
                facts.sop_class_uid,
                facts.transfer_syntax_uid,
                facts.character_set,
                facts.calling_ae,
                facts.called_ae,
                facts.peer_address,
                facts.tls_subject,
                [attributes[tag] for tag in layout.study],
                [attributes[tag] for tag in layout.series],
            )
        )
        shared = self._known.get(quick)
        if shared is None:
            shared = self._known[quick] = self._store(node, facts, attributes, layout)
        return shared, [attributes[tag] for tag in layout.own]

    def _store(
        self, node: str, facts: InstanceFacts, attributes: dict[int, Any], layout: _Layout
    ) -> Shared:
        study_attributes = {tag: attributes[tag] for tag in layout.study}
        study_body = encode(study_attributes)
        study_key = digest(study_body)
        context = Context(
            study_key,
            node,
            facts.sop_class_uid,
            facts.transfer_syntax_uid,
            facts.character_set,
            facts.calling_ae,
            facts.called_ae,
            facts.peer_address,
            facts.tls_subject,
            {tag: attributes[tag] for tag in layout.series},
            layout.own,
        )
        body = encode(context)
        key = digest(body)
        self._overlay.put(Table.STUDY_SET, study_key, study_body)
        self._overlay.put(Table.CONTEXT, key, body)
        shared = Shared(key, context, study_attributes)
        self._cache.keep(shared)
        return shared

    def forget_quick(self) -> None:
        """Drop the shortcuts to contexts; they are found again by their hash."""
        self._known.clear()


def canonical(value: Any) -> Any:
    """Return an attribute's value with the items of its sequences in ascending tag order."""
    if not isinstance(value, list):
        return value
    return [{int(tag): canonical(item[tag]) for tag in sorted(item, key=int)} for item in value]
