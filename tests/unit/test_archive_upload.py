"""One pack on its way to the bucket: what is put, what is found there, what is given up."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from appliance.archive.layout import pack_key
from appliance.foundation.errors import (
    CloudMisconfigured,
    CloudUnavailable,
    Damaged,
    ObjectExists,
    OutOfSpace,
)
from appliance.foundation.files import FileSystem
from appliance.remote.store import Lane
from appliance.seal.age import decrypt_bytes, encrypt_bytes
from tests.support.archive_box import Box, sample
from tests.support.fake_store import Fault, lost_answer, no_answer
from tests.support.pack_samples import full_disk

DAY_S = 86400.0


@pytest.fixture
def pack_id(box: Box) -> str:
    """A sealed pack of three instances."""
    for number in range(3):
        box.store_sample(sample(1, number))
    box.close_packs()
    box.uplink._seal_closed()
    (found,) = box.sealed_ids()
    return found


def _upload(box: Box, pack_id: str):
    return box.upload().upload(pack_id, box.sealed(pack_id), Lane.NEW)


def _spool(box: Box) -> list[str]:
    return sorted(os.listdir(box.layout.spool))


def test_the_object_is_the_pack_sealed_to_node_and_recovery(box: Box, pack_id: str) -> None:
    record = _upload(box, pack_id)
    sealed = box.store.content(record.key)
    plain = Path(box.layout.sealed_path(pack_id)).read_bytes()
    for identities in (box.identities, box.recovery):
        assert decrypt_bytes(sealed, identities) == plain
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        assert len(tar.getnames()) == 4
    assert record.key == pack_key(pack_id)
    assert record.size_bytes == len(sealed)
    assert record.plain_size_bytes == len(plain)
    assert record.lock_mode == "COMPLIANCE"
    assert {each.sha256 for each in record.instances} == {sample(1, n).sha256 for n in range(3)}


def test_the_spool_is_durable_before_the_first_put(box: Box, pack_id: str) -> None:
    """Encryption is not repeatable: what was put once must be there to be put again."""
    box.store.fail("put", no_answer())
    with pytest.raises(CloudUnavailable):
        _upload(box, pack_id)
    assert _spool(box) == [f"{pack_id}.json", f"{pack_id}.tar.age"]
    first = Path(box.layout.spool_path(pack_id)).read_bytes()
    record = _upload(box, pack_id)
    assert box.store.content(record.key) == first


def test_a_lost_answer_is_settled_without_a_second_version(box: Box, pack_id: str) -> None:
    box.store.fail("put", lost_answer())
    with pytest.raises(CloudUnavailable):
        _upload(box, pack_id)
    record = _upload(box, pack_id)
    (version,) = box.store.versions("packs/")
    assert record.version_id == version.version_id


def test_an_upload_whose_spool_was_lost_is_adopted(box: Box, pack_id: str) -> None:
    """Ours, but not our bytes: it decrypts to our pack, so it is taken, with its own head."""
    first = _upload(box, pack_id)
    box.upload().forget(pack_id)
    record = _upload(box, pack_id)
    assert len(list(box.store.versions("packs/"))) == 1
    assert record.age_header == first.age_header
    assert record.file_key == first.file_key
    assert record.size_bytes == first.size_bytes
    assert Path(box.layout.spool_path(pack_id)).read_bytes() == box.store.content(record.key)


@pytest.mark.parametrize("content", ["garbage", "another pack"])
def test_a_strangers_object_is_never_overwritten(box: Box, pack_id: str, content: str) -> None:
    """The key is taken by bytes that are not our pack: an alarm, and the pack stays pending."""
    stranger = b"garbage" if content == "garbage" else encrypt_bytes(b"tar", box.recipients)
    box.store.seed(pack_key(pack_id), stranger)
    with pytest.raises(ObjectExists):
        _upload(box, pack_id)
    assert box.store.content(pack_key(pack_id)) == stranger
    assert not [name for name in _spool(box) if name.endswith(".fetched")]


def test_a_damaged_member_never_reaches_the_bucket(box: Box, pack_id: str) -> None:
    path = Path(box.layout.sealed_path(pack_id))
    raw = bytearray(path.read_bytes())
    raw[raw.index(sample(1, 1).dataset[-50:])] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Damaged, match="not what was received"):
        _upload(box, pack_id)
    assert not list(box.store.versions("packs/"))


def test_a_damaged_spool_is_made_anew(box: Box, pack_id: str) -> None:
    """A bit flips in the spool: the store refuses it, and another copy is encrypted."""
    box.store.fail("put", no_answer())
    with pytest.raises(CloudUnavailable):
        _upload(box, pack_id)
    path = Path(box.layout.spool_path(pack_id))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    record = _upload(box, pack_id)
    assert decrypt_bytes(box.store.content(record.key), box.recovery)


def test_an_unreadable_note_is_no_end(box: Box, pack_id: str) -> None:
    box.store.fail("put", no_answer())
    with pytest.raises(CloudUnavailable):
        _upload(box, pack_id)
    Path(box.layout.spool, f"{pack_id}.json").write_bytes(b"{")
    _upload(box, pack_id)


def test_a_full_disk_gives_its_space_back(box: Box, pack_id: str) -> None:
    """Half a spool file is worth nothing, and would keep the disk full."""

    class Full(FileSystem):
        def pwritev(self, fd, buffers, offset):
            raise full_disk("write")

    upload = box.upload()
    upload._files = Full()
    with pytest.raises(OutOfSpace):
        upload.upload(pack_id, box.sealed(pack_id), Lane.NEW)
    assert _spool(box) == []


def test_a_bucket_that_keeps_no_lock_verifies_nothing(box: Box, pack_id: str) -> None:
    box.store.carries_lock = False
    with pytest.raises(CloudMisconfigured, match="no lock"):
        _upload(box, pack_id)


def test_a_pack_without_a_lock_is_made_good_once_the_bucket_locks(box: Box, pack_id: str) -> None:
    """It was put before the bucket was set right: locked now, not left pending for ever."""
    box.store.carries_lock = False
    with pytest.raises(CloudMisconfigured, match="no lock"):
        _upload(box, pack_id)
    box.store.carries_lock = True
    record = _upload(box, pack_id)
    (version,) = box.store._keys[record.key]
    assert version.lock.until.timestamp() == record.locked_until_us / 1e6


def test_a_bucket_that_stores_other_bytes_verifies_nothing(box: Box, pack_id: str) -> None:
    """It says 200 and holds something else: the HEAD's checksum tells."""
    box.store.fail("head", Fault("before", CloudUnavailable("fake", "", "later")))
    with pytest.raises(CloudUnavailable):
        _upload(box, pack_id)
    with box.store._guard:
        box.store._keys[pack_key(pack_id)][0].content += b"!"
    with pytest.raises((CloudMisconfigured, ObjectExists)):
        _upload(box, pack_id)


def test_a_lock_that_waited_out_an_outage_begins_when_it_is_put(box: Box, pack_id: str) -> None:
    """Else a short retention would have ended before the upload, and the bucket would refuse."""
    box.store.offline = False
    box.store.fail("put", no_answer())
    with pytest.raises(CloudUnavailable):
        _upload(box, pack_id)
    box.clock.advance(40 * DAY_S)
    record = _upload(box, pack_id)
    left_s = record.locked_until_us / 1e6 - box.clock.now().timestamp()
    assert left_s > 29 * DAY_S


def test_a_lock_that_is_too_short_after_a_lost_answer_is_extended(box: Box, pack_id: str) -> None:
    box.store.fail("put", lost_answer())
    with pytest.raises(CloudUnavailable):
        _upload(box, pack_id)
    box.clock.advance(5 * DAY_S)
    record = _upload(box, pack_id)
    left_s = record.locked_until_us / 1e6 - box.clock.now().timestamp()
    assert left_s > 29 * DAY_S
    assert len(list(box.store.versions("packs/"))) == 1
