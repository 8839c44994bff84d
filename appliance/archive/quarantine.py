"""Damaged packs, put out of the way: `packs/set-aside/<pack id>.<stamp>.damaged.tar`, and a note.

Owns those files. Must not touch the index, and decides nothing about what takes their place.

Invariants:
- The note is durable before the pack moves, so that none lies there without its reason (D11).
- Only a verified pack that came back whole from the bucket is ever removed again, after KEPT_S, or
  earlier when such packs hold more than KEPT_BYTES_MAX; and one that was erased. What was pending
  is never removed.
"""

import contextlib
import os
from collections.abc import Container

import msgspec

from appliance.archive.layout import Layout
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.files import FileSystem

FORMAT = 1
KEPT_S = 30 * 86400.0
KEPT_BYTES_MAX = 4 * 2**30
_NOTE = ".damaged.json"
_PACK = ".damaged.tar"

_log = log.get("quarantine")


class Note(msgspec.Struct):
    """What is known of a pack that was set aside. `pending`: its only copy was here."""

    pack_id: str
    why: str
    at_us: int
    pending: bool
    replaced_at_us: int = 0
    format: int = FORMAT


def set_pack_aside(
    files: FileSystem,
    clock: Clock,
    layout: Layout,
    path: str,
    *,
    why: str,
    pending: bool,
) -> bool:
    """Move the pack at `path` into the folder of what was set aside; False when it is gone.

    Raises OutOfSpace, StorageFailed.
    """
    pack_id = os.path.basename(path).removesuffix(".tar")
    at_us = to_microseconds(clock.now())
    stem = os.path.join(layout.set_aside, f"{pack_id}.{at_us}")
    note = Note(pack_id, why, at_us, pending)
    files.write_atomic(stem + _NOTE, msgspec.json.encode(note))
    try:
        files.rename(path, stem + _PACK)
    except FileNotFoundError:
        files.unlink(stem + _NOTE)
        return False
    _log.error("pack_set_aside", pack=pack_id, why=why, pending=pending)
    return True


def notes(layout: Layout) -> list[tuple[str, Note]]:
    """Return every note with the path of its pack, the oldest first; unreadable ones left out."""
    found = []
    for name in sorted(os.listdir(layout.set_aside)):
        if not name.endswith(_NOTE):
            continue
        path = os.path.join(layout.set_aside, name)
        with contextlib.suppress(OSError, msgspec.DecodeError), open(path, "rb") as file:
            note = msgspec.json.decode(file.read(), type=Note)
            found.append((path.removesuffix(_NOTE) + _PACK, note))
    return sorted(found, key=lambda each: each[1].at_us)


def is_replaced(layout: Layout, pack_id: str) -> bool:
    """Tell whether nothing that was set aside of a verified pack waits for its like."""
    return not any(
        note.pack_id == pack_id and not note.pending and not note.replaced_at_us
        for _, note in notes(layout)
    )


def mark_replaced(files: FileSystem, clock: Clock, layout: Layout, pack_id: str) -> int:
    """Note that a whole copy of the pack is here again; return how many were waiting for one."""
    count = 0
    for path, note in notes(layout):
        if note.pack_id == pack_id and not note.pending and not note.replaced_at_us:
            note.replaced_at_us = to_microseconds(clock.now())
            files.write_atomic(path.removesuffix(_PACK) + _NOTE, msgspec.json.encode(note))
            count += 1
    return count


def remove_erased(files: FileSystem, layout: Layout, pack_ids: Container[str]) -> int:
    """Remove what was set aside of verified packs that are no more; return how many went."""
    count = 0
    for path, note in notes(layout):
        if note.pack_id in pack_ids and not note.pending:
            files.unlink(path)
            files.unlink(path.removesuffix(_PACK) + _NOTE)
            count += 1
    return count


def remove_old(files: FileSystem, clock: Clock, layout: Layout) -> int:
    """Remove what need not be kept any longer; return how many packs went."""
    now_us = to_microseconds(clock.now())
    count = kept_bytes = 0
    # The newest first: of these the most is kept.
    for path, note in reversed(notes(layout)):
        if note.pending or not note.replaced_at_us:
            continue
        with contextlib.suppress(FileNotFoundError):
            kept_bytes += os.path.getsize(path)
        old = now_us - note.replaced_at_us > KEPT_S * 1e6
        if old or kept_bytes > KEPT_BYTES_MAX:
            files.unlink(path)
            files.unlink(path.removesuffix(_PACK) + _NOTE)
            count += 1
    if count:
        _log.info("set_aside_removed", count=count)
    return count
