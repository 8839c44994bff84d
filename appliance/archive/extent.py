"""A range of a pack's bytes that is read as it is sliced, never held or mapped as a whole.

What is mapped and touched counts as memory of the process, so a large instance is served so.
"""

import hashlib
from collections.abc import Callable

from appliance.foundation.errors import Damaged, Unreadable

PIECE_BYTES = 1024 * 1024


class Extent:
    """Bytes [offset, offset + length) of an open file: `len` and slices of step 1 are all it has.

    `read` gives the bytes at an offset of the file, fewer at its end; the extent keeps it, and so
    the file, alive. Any thread may slice.
    """

    __slots__ = ("_length", "_offset", "_read")

    def __init__(self, read: Callable[[int, int], bytes], offset: int, length: int) -> None:
        self._read = read
        self._offset = offset
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: slice) -> bytes:
        """Return a copy of a slice; Damaged when it is cut, Unreadable when the disk fails."""
        start, stop, _ = key.indices(self._length)
        size = max(0, stop - start)
        try:
            data = self._read(self._offset + start, size)
        except OSError as cause:
            raise Unreadable("read a pack", "", cause.strerror or "", "Check the disk") from cause
        if len(data) != size:
            raise Damaged("read a pack", "", "it ends inside a dataset")
        return data

    def part(self, offset: int, length: int) -> "Extent":
        """Return a range of it as an extent of its own."""
        return Extent(self._read, self._offset + offset, min(length, self._length - offset))

    def sha256(self) -> bytes:
        """Return the digest of the bytes as they are now; Damaged as for a slice."""
        digest = hashlib.sha256()
        for start in range(0, self._length, PIECE_BYTES):
            digest.update(self[start : start + PIECE_BYTES])
        return digest.digest()


Dataset = memoryview | Extent
"""A dataset as it is given out: a view of bytes at hand, or an extent of a large one."""


def part_of(dataset: Dataset, offset: int, length: int) -> Dataset:
    """Return a range of a dataset, not copied."""
    if isinstance(dataset, Extent):
        return dataset.part(offset, length)
    return dataset[offset : offset + length]
