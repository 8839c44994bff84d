"""What has to be kept and how long: the packs of studies, legal holds, what was erased.

Reads inside the transaction of the view it is given. It decides nothing.
"""

from collections.abc import Iterator

from appliance.index.keys import pack_id_of, pack_uid, unpack_uid
from appliance.index.pack_state import reference_of
from appliance.index.records import Hold, PackRow
from appliance.index.schema import Table, decode_hold
from appliance.index.view import View, pack_row


def packs_of(view: View, study_instance_uid: str) -> list[PackRow]:
    """Return every pack that holds an instance of a study, hidden and older versions too, by id."""
    return _rows(view, pack_uid(study_instance_uid))


def studies_from(view: View, after: str, limit: int) -> Iterator[tuple[str, int]]:
    """Yield studies and in how many packs they lie, by UID, from the one behind `after` on.

    At most `limit`; `after` "" begins at the first. Only the keys are read.
    """
    start = _behind(pack_uid(after)) if after else None
    current, count, told = b"", 0, 0
    for key, _ in view.reader.scan(Table.STUDY_PACK, b"", start):
        if current and key.startswith(current):
            count += 1
            continue
        if current:
            yield unpack_uid(current)[0], count
            told += 1
            if told >= limit:
                return
        current, count = key[: unpack_uid(key)[1]], 1
    if current:
        yield unpack_uid(current)[0], count


def hold_of(view: View, study_instance_uid: str) -> Hold | None:
    """Return what was last said of a study's legal hold, None when nothing ever was."""
    body = view.reader.get(Table.HOLD, pack_uid(study_instance_uid))
    return None if body is None else _hold(study_instance_uid, body)


def is_held(view: View, study_instance_uid: str) -> bool:
    """Return whether a study is under legal hold."""
    hold = hold_of(view, study_instance_uid)
    return hold is not None and hold.on


def holds(view: View) -> Iterator[Hold]:
    """Yield what was last said of every study of which a hold was ever said, by UID."""
    for key, body in view.reader.scan(Table.HOLD, b""):
        yield _hold(unpack_uid(key)[0], body)


def erased_packs(view: View) -> Iterator[str]:
    """Yield the ids of the packs that were erased, the earliest first."""
    for key, _ in view.reader.scan(Table.ERASED, b""):
        yield pack_id_of(reference_of(key))


def _behind(study: bytes) -> bytes:
    """Return the first key that can stand behind all keys of a study."""
    return study[:-1] + bytes([study[-1] + 1])


def _rows(view: View, study: bytes) -> list[PackRow]:
    references = [key[len(study) :] for key, _ in view.reader.scan(Table.STUDY_PACK, study)]
    found = []
    for reference in references:
        stored = view.reader.pack(reference)
        if stored is not None:
            found.append(pack_row(pack_id_of(reference), stored))
    return found


def _hold(study_instance_uid: str, body: bytes) -> Hold:
    last = decode_hold(body)[-1]
    return Hold(study_instance_uid, last.on, last.by, last.reason, last.at_us)
