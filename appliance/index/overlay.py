"""Writes of one transaction, gathered by table and put in key order.

Invariant: what was put or deleted here is what `get` answers, flushed or not.
"""

from collections.abc import Iterator
from typing import Any

from appliance.index.environment import Environment
from appliance.index.schema import Table, open_value, seal_value

_ABSENT = object()


class Overlay:
    """The tables as a write transaction sees them. Owned by the thread of that transaction."""

    def __init__(self, environment: Environment, transaction: Any) -> None:
        self._transaction = transaction
        self._tables = environment.tables
        self._environment = environment
        self.pending: list[dict[bytes, bytes | None]] = [{} for _ in Table]

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the body of a record, None when there is none."""
        found: Any = self.pending[table].get(key, _ABSENT)
        if found is _ABSENT:
            found = self._transaction.get(key, db=self._tables[table])
            return None if found is None else open_value(table, key, found)
        return None if found is None else bytes(found)

    def put(self, table: Table, key: bytes, body: bytes) -> None:
        """Store a record."""
        self.pending[table][key] = body

    def delete(self, table: Table, key: bytes) -> None:
        """Remove a record if it is there."""
        self.pending[table][key] = None

    def entries(self, table: Table) -> int:
        """Return how many records are flushed in a table."""
        return self._environment.entries(table, self._transaction)

    def flush(self, *tables: Table) -> None:
        """Hand the gathered writes of these tables to LMDB."""
        for table in tables:
            pending = self.pending[table]
            if not pending:
                continue
            put: list[tuple[bytes, bytes]] = []
            for key in sorted(pending):
                body = pending[key]
                if body is None:
                    self._transaction.delete(key, db=self._tables[table])
                else:
                    put.append((key, seal_value(key, body)))
            with self._transaction.cursor(self._tables[table]) as cursor:
                cursor.putmulti(put, overwrite=table is not Table.CONTEXT)
            pending.clear()

    def scan(self, table: Table, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and body of the records whose keys begin so, after flushing the table."""
        self.flush(table)
        with self._transaction.cursor(self._tables[table]) as cursor:
            more = cursor.set_range(prefix)
            while more:
                key = cursor.key()
                if not key.startswith(prefix):
                    return
                yield key, open_value(table, key, cursor.value())
                more = cursor.next()
