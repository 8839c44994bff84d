"""Records by their keys, inside one read transaction.

It does not search (query.py does). Invariant: nothing it returns refers to the transaction.
"""

from collections.abc import Iterator
from typing import Any

from appliance.index.contexts import ContextCache, Shared
from appliance.index.environment import Environment
from appliance.index.schema import (
    Copy,
    PatientRow,
    SeriesRow,
    StoredPack,
    StudyRow,
    Table,
    damaged,
    decode_copies,
    decode_pack,
    decode_patient,
    decode_series,
    decode_study,
    decode_visibility,
    open_value,
)
from appliance.index.served import by_version


class Reader:
    """Typed gets and scans. Owned by the thread of the transaction."""

    __slots__ = ("_cache", "_environment", "_packs", "_tables", "transaction")

    def __init__(self, environment: Environment, transaction: Any, cache: ContextCache) -> None:
        self._environment = environment
        self.transaction = transaction
        self._tables = environment.tables
        self._cache = cache
        self._packs: dict[bytes, StoredPack | None] = {}

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the body of a record, None when there is none."""
        value = self.transaction.get(key, db=self._tables[table])
        return None if value is None else open_value(table, key, value)

    def edge(self, table: Table, *, first: bool) -> bytes | None:
        """Return the first or the last key of a table, None of an empty one."""
        with self.transaction.cursor(self._tables[table]) as cursor:
            found = cursor.first() if first else cursor.last()
            return bytes(cursor.key()) if found else None

    def scan(
        self, table: Table, prefix: bytes, start: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and body of the records whose keys begin so, from `start` on if given."""
        with self.transaction.cursor(self._tables[table]) as cursor:
            more = cursor.set_range(prefix if start is None else start)
            while more:
                key = cursor.key()
                if not key.startswith(prefix):
                    return
                yield key, open_value(table, key, cursor.value())
                more = cursor.next()

    def entries(self, table: Table) -> int:
        """Return how many records a table has."""
        return self._environment.entries(table, self.transaction)

    def cursor(self, table: Table) -> Any:
        """Return a cursor over a table."""
        return self.transaction.cursor(self._tables[table])

    def study(self, study: bytes) -> StudyRow | None:
        """Return a study's row."""
        body = self.get(Table.STUDY, study)
        return None if body is None else decode_study(body)

    def series(self, key: bytes) -> SeriesRow | None:
        """Return a series' row by packed Study and Series UID."""
        body = self.get(Table.SERIES, key)
        return None if body is None else decode_series(body)

    def copies(self, key: bytes) -> list[Copy]:
        """Return an instance's copies by packed Study, Series and SOP Instance UID."""
        body = self.get(Table.INSTANCE, key)
        if body is None:
            raise damaged("instance", "a record that is named elsewhere is missing")
        return decode_copies(body)

    def patient(self, patient: bytes) -> PatientRow | None:
        """Return a patient's row."""
        body = self.get(Table.PATIENT, patient)
        return None if body is None else decode_patient(body)

    def pack(self, reference: bytes) -> StoredPack | None:
        """Return a pack's row; read once a transaction."""
        if reference not in self._packs:
            body = self.get(Table.PACK, reference)
            self._packs[reference] = None if body is None else decode_pack(body)
        return self._packs[reference]

    def is_local(self, reference: bytes) -> bool:
        """Return whether a pack is on this disk."""
        pack = self.pack(reference)
        return pack is not None and pack.local

    def shared(self, study: bytes, key: bytes) -> Shared:
        """Return a context of a study."""
        return self._cache.shared(study, key, self.get)

    def versions(self, study: bytes, copies: list[Copy]) -> list[list[Copy]]:
        """Return an instance's copies by version, the newest version last."""
        if len(copies) == 1:
            return [copies]
        return by_version(copies, lambda key: self.shared(study, key).context)

    def hidden_in(self, study: bytes) -> set[bytes]:
        """Return the packed SOP Instance UIDs that are hidden in a study."""
        return {
            key[len(study) :]
            for key, body in self.scan(Table.VISIBILITY, study)
            if decode_visibility(body)[-1].hidden
        }
