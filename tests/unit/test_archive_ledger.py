"""The node's own log: chain and signature, what is adopted, what is refused, lost answers."""

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from appliance.archive.ledger import Ledger, state_path
from appliance.archive.ledger_entry import (
    FIRST_PREVIOUS,
    build_entry,
    check_link,
    entry_key,
    entry_name,
    open_entry,
    seal_entry,
)
from appliance.archive.records import Opened
from appliance.foundation.errors import (
    CloudUnavailable,
    Damaged,
    DecryptionFailed,
    ForeignWriter,
    OutOfSpace,
    UnsupportedFormat,
)
from appliance.foundation.files import FileSystem
from appliance.seal.identity import new_identity_file, parse_identities
from appliance.seal.signing import SigningKey
from tests.support.archive_box import NODE, Box, create_keys, entries
from tests.support.fake_store import lost_answer, no_answer
from tests.support.pack_samples import full_disk


def _opened(text: str = "x") -> Opened:
    return Opened(incarnation=text, software="test", at="2026-03-02T03:00:00.000000Z")


def _started(box: Box) -> Ledger:
    ledger = box.ledger()
    ledger.start()
    return ledger


def test_entries_form_a_signed_chain(box: Box) -> None:
    """Each entry names the one before it; both the node and the recovery key read it."""
    ledger = _started(box)
    for number in range(3):
        ledger.append([_opened(str(number))])
    signer = SigningKey.load(str(box.folder / "signing.pem")).public_text
    for identities in (box.identities, box.recovery):
        previous = FIRST_PREVIOUS
        for sequence, entry in enumerate(entries(box.store, identities), 1):
            check_link(entry, NODE, sequence, previous, {signer})
            previous = entry.header_sha256
    assert [entry.header.sequence for entry in ledger.entries()] == [1, 2, 3]


def test_entries_are_create_only_and_locked(box: Box) -> None:
    ledger = _started(box)
    ledger.append([_opened()])
    info = box.store.head(entry_key(NODE, 1))
    assert info.lock is not None
    assert info.lock.mode == "COMPLIANCE"
    assert len(list(box.store.versions("ledger/"))) == 1


def test_an_entry_is_on_disk_before_it_is_put(box: Box) -> None:
    """A crash during the PUT: the next start puts the same bytes, not others."""
    ledger = _started(box)
    box.store.fail("put", no_answer())
    with pytest.raises(CloudUnavailable):
        ledger.append([_opened("first")])
    assert ledger.unconfirmed
    assert ledger.sequence == 0
    on_disk = Path(box.layout.ledger, NODE, entry_name(1)).read_bytes()
    again = _started(box)
    assert box.store.content(entry_key(NODE, 1)) == on_disk
    assert again.sequence == 1


def test_a_lost_answer_is_no_second_entry(box: Box) -> None:
    """The PUT took effect: the next one meets 412, finds our bytes, and goes on."""
    ledger = _started(box)
    box.store.fail("put", lost_answer())
    with pytest.raises(CloudUnavailable):
        ledger.append([_opened("first")])
    ledger.resume()
    ledger.append([_opened("second")])
    texts = [entry.records[0].incarnation for entry in entries(box.store, box.recovery)]
    assert texts == ["first", "second"]
    assert len(list(box.store.versions("ledger/"))) == 2


def test_a_second_box_of_the_same_name_is_stopped(box: Box, tmp_path: Path) -> None:
    """Whichever comes later: what the other wrote is neither overwritten nor taken for ours."""
    first = _started(box)
    other = Box(_copy_keys(box, tmp_path / "other"), box.store, clock=box.clock)
    second = other.ledger()
    second.start()
    second.append([_opened("theirs")])
    with pytest.raises(ForeignWriter):
        first.append([_opened("ours")])
    with pytest.raises(ForeignWriter):
        first.resume()
    third = Box(_copy_keys(box, tmp_path / "third"), box.store, clock=box.clock)
    with pytest.raises(ForeignWriter):
        third.ledger().start()
    assert [e.records[0].incarnation for e in entries(box.store, box.recovery)] == ["theirs"]
    other.close()
    third.close()


def _copy_keys(box: Box, folder: Path) -> Path:
    folder.mkdir()
    for name in ("node.key", "recovery.key", "signing.pem"):
        shutil.copy2(box.folder / name, folder)
    return folder


def test_an_entry_of_ours_that_the_disk_lost_is_adopted(box: Box) -> None:
    """The bucket has more than the disk, all of it written by this box."""
    ledger = _started(box)
    for number in range(3):
        ledger.append([_opened(str(number))])
    for sequence in (2, 3):
        os.unlink(os.path.join(box.layout.ledger, NODE, entry_name(sequence)))
    again = _started(box)
    again.append([_opened("next")])
    assert again.sequence == 4
    assert len(list(again.entries())) == 4


def test_copies_that_are_missing_are_fetched(box: Box) -> None:
    ledger = _started(box)
    for number in range(3):
        ledger.append([_opened(str(number))])
    os.unlink(os.path.join(box.layout.ledger, NODE, entry_name(2)))
    again = box.ledger()
    assert [entry.records[0].incarnation for entry in again.entries(2)] == ["1", "2"]


def test_a_lost_state_file_takes_nothing_for_foreign_that_the_disk_has(box: Box) -> None:
    ledger = _started(box)
    ledger.append([_opened("first")])
    os.unlink(state_path(box.layout))
    again = _started(box)
    again.append([_opened("second")])
    assert again.sequence == 2


def test_a_full_disk_before_the_put_leaves_no_entry(box: Box) -> None:
    """The record is then appended, not taken for written."""
    ledger = _started(box)
    ledger._files = _Full(entry_name(1))
    with pytest.raises(OutOfSpace):
        ledger.append([_opened("first")])
    assert not ledger.unconfirmed
    ledger._files = FileSystem()
    ledger.append([_opened("first")])
    assert ledger.sequence == 1


def test_a_full_disk_behind_the_put_writes_no_second_entry(box: Box) -> None:
    """The bucket has it, the state does not: it stays unconfirmed and is found by `resume`."""
    ledger = _started(box)
    ledger._files = _Full("ledger.json")
    with pytest.raises(OutOfSpace):
        ledger.append([_opened("first")])
    assert ledger.unconfirmed
    ledger._files = FileSystem()
    ledger.resume()
    assert ledger.sequence == 1
    assert len(list(box.store.versions("ledger/"))) == 1


class _Full(FileSystem):
    """A disk that is full when a certain file is written."""

    def __init__(self, name: str) -> None:
        self._name = name

    def write_atomic(self, path, content, mode=0o660):
        if os.path.basename(path) == self._name:
            raise full_disk("write")
        super().write_atomic(path, content, mode)


def test_a_start_that_is_tried_again_counts_once(box: Box) -> None:
    """A line that comes and goes must not push the incarnations of earlier starts out."""
    first = _started(box)
    first.append([_opened()])
    again = box.ledger()
    for _ in range(5):
        again.start()
    state = msgspec.json.decode(Path(state_path(box.layout)).read_bytes())
    assert state["incarnations"] == [first.incarnation, again.incarnation]


def test_an_unreachable_bucket_ends_a_start(box: Box) -> None:
    box.store.offline = True
    with pytest.raises(CloudUnavailable):
        box.ledger().start()


def test_a_deleted_entry_is_still_the_oldest_version(box: Box) -> None:
    """A stolen key puts delete markers over the log: the entries are read all the same."""
    ledger = _started(box)
    ledger.append([_opened("first")])
    box.store.put_delete_marker(entry_key(NODE, 1))
    box.store.seed(entry_key(NODE, 1), b"forged")
    os.unlink(os.path.join(box.layout.ledger, NODE, entry_name(1)))
    assert [entry.records[0].incarnation for entry in box.ledger().entries()] == ["first"]


class TestEntry:
    """One entry's bytes."""

    def _entry(self, tmp_path: Path, **changes):
        create_keys(tmp_path)
        key = SigningKey.load(str(tmp_path / "signing.pem"))
        arguments = {
            "node": NODE, "sequence": 1, "incarnation": "i", "written_at": "t",
            "previous": FIRST_PREVIOUS, "records": [_opened()], "signing_key": key,
        } | changes  # fmt: skip
        return build_entry(**arguments), key

    def test_another_place_or_signer_is_damage(self, tmp_path: Path) -> None:
        entry, key = self._entry(tmp_path)
        known = {key.public_text}
        check_link(entry, NODE, 1, FIRST_PREVIOUS, known)
        for node, sequence, previous, signers in (
            ("other", 1, FIRST_PREVIOUS, known),
            (NODE, 2, FIRST_PREVIOUS, known),
            (NODE, 1, "1" * 64, known),
            (NODE, 1, FIRST_PREVIOUS, set()),
        ):
            with pytest.raises(Damaged):
                check_link(entry, node, sequence, previous, signers)

    def test_a_changed_header_line_fails_its_signature(self, tmp_path: Path) -> None:
        entry, key = self._entry(tmp_path)
        line = entry.header_line.replace(b'"t"', b'"u"')
        forged = msgspec.structs.replace(
            entry, header_line=line, header=msgspec.json.decode(line, type=type(entry.header))
        )
        with pytest.raises(Damaged, match="signature"):
            check_link(forged, NODE, 1, FIRST_PREVIOUS, {key.public_text})

    def test_a_record_that_the_header_does_not_name_is_damage(self, tmp_path: Path) -> None:
        entry, _ = self._entry(tmp_path)
        other = msgspec.structs.replace(entry, records=[_opened("other")])
        identity = parse_identities((tmp_path / "node.key").read_text())
        sealed = seal_entry(other, [identity[0].recipient])
        with pytest.raises(Damaged, match="record hash"):
            open_entry(sealed, identity)

    def test_another_format_is_refused(self, tmp_path: Path) -> None:
        entry, _ = self._entry(tmp_path)
        line = entry.header_line.replace(b'"format":1', b'"format":2')
        identity = parse_identities((tmp_path / "node.key").read_text())
        sealed = seal_entry(
            msgspec.structs.replace(entry, header_line=line), [identity[0].recipient]
        )
        with pytest.raises(UnsupportedFormat):
            open_entry(sealed, identity)

    def test_a_stranger_reads_nothing(self, tmp_path: Path) -> None:
        entry, _ = self._entry(tmp_path)
        identity = parse_identities((tmp_path / "node.key").read_text())
        new_identity_file(str(tmp_path / "stranger.key"))
        stranger = parse_identities((tmp_path / "stranger.key").read_text())
        with pytest.raises(DecryptionFailed):
            open_entry(seal_entry(entry, [identity[0].recipient]), stranger)
