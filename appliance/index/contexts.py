"""What instances of a study share: attributes are split by level, the shared ones stored once.

Invariants:
- A CONTEXT record is named by its study and the hash of its bytes; it never changes, so that a
  decoded one may be kept as long as memory allows. Nobody changes a decoded one.
- UIDs that are in keys, the SOP Class UID and the character set are in no dictionary.
- A context is of one series: that is how an older copy, whose record lies under the newest copy's
  series, finds its own again when the newest is erased.
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
    encode,
)

CACHED_MAX: Final = 4_000
"""Decoded records kept, some 4 kB each; a study that somebody looks at has a handful."""

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

    key: its hash. patient: the patient key, without the study that a nameless patient's key ends
    with. identified: there is a PatientID.
    """

    __slots__ = ("context", "identified", "key", "modality", "patient")

    def __init__(self, key: bytes, context: Context) -> None:
        self.key = key
        self.context = context
        self.patient = patient_prefix(context.study_attributes)
        self.identified = self.patient[0] != 0
        self.modality = _text(context.series_attributes, MODALITY)

    def patient_of(self, study: bytes) -> bytes:
        """Return the patient key: without a PatientID, every study is a patient of its own."""
        return self.patient if self.identified else self.patient + study


def patient_key(study: bytes, study_attributes: dict[int, Any]) -> bytes:
    """Return the patient key of a study with these attributes."""
    prefix = patient_prefix(study_attributes)
    return prefix if prefix[0] else prefix + study


class ContextCache:
    """Decoded contexts by their hash, for all transactions of one index.

    Threads: the dictionary is replaced whole when full; a lost entry is only read again.
    """

    def __init__(self) -> None:
        self._shared: dict[bytes, Shared] = {}

    def shared(
        self, study: bytes, key: bytes, get: Callable[[Table, bytes], bytes | None]
    ) -> Shared:
        """Return a context of a study; `get` reads a record's body."""
        found = self._shared.get(key)
        if found is None:
            body = get(Table.CONTEXT, study + key)
            if body is None:
                raise damaged("context", "a record that is named elsewhere is missing")
            found = Shared(key, decode_context(body))
            self.keep(found)
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

    def split(
        self, study: bytes, series: bytes, node: str, facts: InstanceFacts
    ) -> tuple[Shared, list[Any]]:
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
                study,
                series,
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
            shared = self._known[quick] = self._store(
                study, _context(series, node, facts, attributes, layout)
            )
        return shared, [attributes[tag] for tag in layout.own]

    def _store(self, study: bytes, context: Context) -> Shared:
        body = encode(context)
        shared = Shared(digest(body), context)
        self._overlay.put(Table.CONTEXT, study + shared.key, body)
        self._cache.keep(shared)
        return shared

    def forget_quick(self) -> None:
        """Drop the shortcuts to contexts; they are found again by their hash."""
        self._known.clear()


def _context(
    series: bytes, node: str, facts: InstanceFacts, attributes: dict[int, Any], layout: _Layout
) -> Context:
    return Context(
        node,
        facts.sop_class_uid,
        facts.transfer_syntax_uid,
        facts.character_set,
        facts.calling_ae,
        facts.called_ae,
        facts.peer_address,
        facts.tls_subject,
        {tag: attributes[tag] for tag in layout.study},
        {tag: attributes[tag] for tag in layout.series},
        layout.own,
        series,
    )


def canonical(value: Any) -> Any:
    """Return an attribute's value with the items of its sequences in ascending tag order."""
    if not isinstance(value, list):
        return value
    return [{int(tag): canonical(item[tag]) for tag in sorted(item, key=int)} for item in value]
