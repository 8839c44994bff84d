"""Local copies of what is erased, anywhere: they go when the index says so, on every node.

Deletes nothing that is pending: a pack that no ledger names is never erased. Invariant: each erased
pack is looked at once a start; one that a recall brings back in that moment, at the next.
"""

import os
import threading

from appliance.archive.layout import Layout
from appliance.archive.quarantine import remove_erased
from appliance.foundation import log
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.index.keeping import erased_packs

_log = log.get("erased_copies")


class ErasedCopies:
    """Removes them. Any thread; `_lock` guards what was looked at."""

    def __init__(self, files: FileSystem, layout: Layout, index: Index) -> None:
        self._files = files
        self._layout = layout
        self._index = index
        self._lock = threading.Lock()
        self._removed: set[str] = set()

    def remove(self) -> int:
        """Remove every local copy of an erased pack; return how many there were."""
        with self._lock:
            return self._remove()

    def _remove(self) -> int:
        with self._index.read() as view:
            found = [each for each in erased_packs(view) if each not in self._removed]
        count = remove_erased(self._files, self._layout, set(found)) if found else 0
        for pack_id in found:
            path = self._layout.sealed_path(pack_id)
            # The gate: a rebuild sees the file and the index's word on it, or neither.
            with self._index.generations.gate().holding(shared=True):
                if os.path.exists(path):
                    self._files.unlink(path)
                    count += 1
            self._removed.add(pack_id)
        if count:
            _log.warning("erased_copies_removed", count=count)
        return count
