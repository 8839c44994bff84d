"""A pending pack that is damaged: its good members go on in a new pack, the others are named.

Owns the step from a damaged pack to a new one in `packs/closed/`, the damaged one in
`packs/set-aside/`, and the list of what has to be sent again. The caller sees to it that nobody
seals or uploads the pack meanwhile.

Invariants:
- Of a member that goes on, the dataset's bytes, its name and its provenance are what they were;
  its sha256 was checked as it was written.
- The new pack is durable before the old one moves, and the damaged instances are listed durably
  before that too (D11): a crash in between finds the old pack again, and comes to the same end.
- The new pack's id follows from the old one's, so that it is made once.
- A pack of which the spool still has a sound sealed copy loses nothing: it is made from that.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from typing import BinaryIO

import msgspec

from appliance.archive.damage_report import DAMAGED, UNREADABLE
from appliance.archive.damaged import DamagedBook, DamagedInstance
from appliance.archive.extent import Extent
from appliance.archive.layout import Layout, salvaged_pack_id
from appliance.archive.quarantine import set_pack_aside
from appliance.archive.recall import check_pack
from appliance.archive.upload import SpoolNote, file_sha256
from appliance.dicom.file_meta import build_file_meta
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import AzekuraError, Damaged, OutOfSpace, StorageFailed
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.index.records import StoredCopy, StoredInstance, Version
from appliance.packs.durable import durable_path
from appliance.packs.member import Buffer, Member, Provenance, member_name
from appliance.packs.reader import PackReader
from appliance.packs.recovery import Examined, examine
from appliance.packs.writer import PackWriter
from appliance.seal.age import decrypt_file
from appliance.seal.identity import Identity

COPY_MAX_BYTES = 8 * 2**20

_log = log.get("salvage")

Known = tuple[StoredInstance, Version, StoredCopy]


class Salvaged(msgspec.Struct, frozen=True):
    """What became of a pack: `kept` members went on, `damaged` instances are listed.

    `sound`: there was nothing wrong with it, and nothing was done.
    """

    sound: bool
    unreadable: bool
    kept: int = 0
    damaged: int = 0


class Salvager:
    """Salvages pending packs, one at a time for each pack."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        index: Index,
        identities: Sequence[Identity],
        damaged: DamagedBook,
    ) -> None:
        self._files = files
        self._clock = clock
        self._layout = layout
        self._index = index
        self._identities = identities
        self._damaged = damaged

    def salvage(self, pack_id: str) -> Salvaged:
        """Take what is good of a closed or sealed pack that no ledger names.

        Raises OutOfSpace (later there may be room), IndexDamaged, StorageFailed.
        """
        path = self._path(pack_id)
        known = self._known(pack_id)
        if known is None:
            return Salvaged(sound=True, unreadable=False)  # verified: the bucket has it
        if path is None:
            count = self._damaged.add([self._named(each) for each in known])
            self._lose(pack_id)
            return Salvaged(sound=False, unreadable=False, damaged=count)
        found = examine(self._files, path)
        good = {member.dataset_offset for member in found.members}
        missing = [each for each in known if each[2].offset not in good]
        if found.is_whole and not (found.marked and missing):
            return Salvaged(sound=True, unreadable=False)
        if self._restore_from_spool(pack_id):
            return Salvaged(sound=False, unreadable=found.unreadable, kept=len(known))
        with PackReader(path) as reader:
            headless = [each for each in missing if _holds(reader, each)]
            kept = self._write(pack_id, reader, found, headless)
            lost = [each for each in missing if each not in headless]
        self._damaged.add([*map(self._named, lost), *self._unknown(pack_id, found, known)])
        why = UNREADABLE if found.unreadable else DAMAGED
        set_pack_aside(self._files, self._clock, self._layout, path, why=why, pending=True)
        self._lose(pack_id)
        _log.warning("pack_salvaged", pack=pack_id, kept=kept, damaged=len(lost))
        return Salvaged(
            sound=False,
            unreadable=found.unreadable,
            kept=kept,
            damaged=len(lost),
        )

    def renew(self, pack_id: str) -> bool:
        """Send a whole pack of this disk again under another id; False when it is not whole.

        The pack itself stays. Errors as for `salvage`.
        """
        path = self._layout.sealed_path(pack_id)
        try:
            found = examine(self._files, path)
        except FileNotFoundError:
            return False
        if not found.is_whole or found.marked:
            return False
        with PackReader(path) as reader:
            self._write(pack_id, reader, found, [])
        return True

    def _path(self, pack_id: str) -> str | None:
        for path in (self._layout.sealed_path(pack_id), self._layout.closed_path(pack_id)):
            if os.path.exists(path):
                return path
        return None

    def _known(self, pack_id: str) -> list[Known] | None:
        """Return what the index knows of a pending pack; None of one that a ledger names."""
        with self._index.read() as view:
            row = view.pack(pack_id)
            if row is not None and row.cloud is not None:
                return None
            return list(view.pack_instances(pack_id))

    def _lose(self, pack_id: str) -> None:
        """Tell the index that the pack is not here any more."""
        self._index.transact(lambda txn: txn.set_local(pack_id, False))

    # --- the spool

    def _restore_from_spool(self, pack_id: str) -> bool:
        """Make the pack anew from its sealed copy on this disk, if there is a sound one."""
        spool = self._layout.spool_path(pack_id)
        note_path = f"{spool.removesuffix('.tar.age')}.json"
        target = self._layout.sealed_path(pack_id)
        made = os.path.join(self._layout.recalled, f"{pack_id}.restored")
        try:
            with open(note_path, "rb") as file:
                note = msgspec.json.decode(file.read(), type=SpoolNote)
            if file_sha256(spool) != note.sha256.hex():
                return False
            with open(spool, "rb") as sealed:
                self._decrypt(sealed, made)
            check_pack(made)
        except StorageFailed:
            raise
        except (AzekuraError, OSError, msgspec.DecodeError) as error:
            if not isinstance(error, FileNotFoundError):
                _log.warning("spool_not_usable", pack=pack_id, error=type(error).__name__)
            with contextlib.suppress(AzekuraError):
                self._files.unlink(made)
            return False
        if os.path.exists(target):
            set_pack_aside(
                self._files, self._clock, self._layout, target, why=DAMAGED, pending=True
            )
        self._files.rename(made, target)
        _log.warning("pack_restored_from_spool", pack=pack_id)
        return True

    def _decrypt(self, sealed: BinaryIO, path: str) -> None:
        fd = self._files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o660)
        try:
            at = 0
            for piece in decrypt_file(sealed, self._identities):
                self._files.pwritev(fd, [piece], at)
                at += len(piece)
            self._files.fdatasync(fd)
        finally:
            self._files.close(fd)

    # --- the new pack

    def _write(
        self, pack_id: str, reader: PackReader, found: Examined, headless: list[Known]
    ) -> int:
        """Write the good members into a new closed pack, durable; return how many there are."""
        new_id = salvaged_pack_id(pack_id)
        count = len(found.members) + len(headless)
        if count == 0 or self._is_there(new_id):
            return count
        path = os.path.join(self._layout.recalled, f"{new_id}.tar")
        self._remove(path)
        writer = PackWriter(self._files, path, "", self._clock)
        try:
            for member in found.members:
                self._append(writer, reader, member)
            for each in headless:
                self._append_headless(writer, reader, each)
            writer.sync()
            writer.close()
            self._files.unlink(durable_path(path))
            self._files.rename(path, self._layout.closed_path(new_id))
        except (OutOfSpace, Damaged):
            with contextlib.suppress(AzekuraError):
                writer.close()
            self._remove(path)
            raise
        return count

    def _remove(self, path: str) -> None:
        self._files.unlink(path)
        self._files.unlink(durable_path(path))

    def _is_there(self, pack_id: str) -> bool:
        with self._index.read() as view:
            row = view.pack(pack_id)
        verified = row is not None and row.cloud is not None
        return verified or any(os.path.exists(each) for each in self._layout.candidates(pack_id))

    @staticmethod
    def _append(writer: PackWriter, reader: PackReader, member: Member) -> None:
        meta = reader.read_range(member.file_offset, member.dataset_offset - member.file_offset)
        dataset = _read(reader, member.dataset_offset, member.length)
        if hashlib.sha256(dataset).digest() != member.sha256:
            raise Damaged("salvage", reader.path, "the disk gives other bytes each time")
        writer.append(
            member.name, member.provenance, member.transfer_syntax_uid, meta, dataset, member.sha256
        )

    @staticmethod
    def _append_headless(writer: PackWriter, reader: PackReader, known: Known) -> None:
        """Append a member whose header is damaged, with what the index knows of it."""
        instance, version, copy = known
        suffix = None if len(instance.versions) == 1 else version.sha256.hex()[:8]
        issuer = version.attributes.get(_ISSUER, "")
        writer.append(
            member_name(instance.series_instance_uid, instance.sop_instance_uid, suffix),
            Provenance(
                copy.received_at_us, copy.calling_ae, copy.called_ae, copy.peer_address,
                copy.tls_subject, issuer if isinstance(issuer, str) else "", version.character_set,
            ),
            version.transfer_syntax_uid,
            build_file_meta(
                version.sop_class_uid, instance.sop_instance_uid, version.transfer_syntax_uid,
                copy.calling_ae,
            ),
            _read(reader, copy.offset, version.length),
            version.sha256,
        )  # fmt: skip

    # --- names

    def _named(self, known: Known) -> DamagedInstance:
        instance, version, copy = known
        return DamagedInstance(
            study_instance_uid=instance.study_instance_uid,
            series_instance_uid=instance.series_instance_uid,
            sop_instance_uid=instance.sop_instance_uid,
            transfer_syntax_uid=version.transfer_syntax_uid,
            length=version.length,
            sha256=version.sha256.hex(),
            received_at_us=copy.received_at_us,
            calling_ae=copy.calling_ae,
            called_ae=copy.called_ae,
            peer_address=copy.peer_address,
            tls_subject=copy.tls_subject,
            pack_id=copy.pack_id,
            offset=copy.offset,
            found_at_us=to_microseconds(self._clock.now()),
        )

    def _unknown(self, pack_id: str, found: Examined, known: list[Known]) -> list[DamagedInstance]:
        """Return the damaged members that the index does not know, by what their headers say."""
        offsets = {each[2].offset for each in known}
        study = known[0][0].study_instance_uid if known else ""
        return [
            DamagedInstance(
                study_instance_uid=study,
                series_instance_uid=member.name.partition("/")[0],
                sop_instance_uid=member.sop_instance_uid,
                transfer_syntax_uid=member.transfer_syntax_uid,
                length=member.length,
                sha256=member.sha256.hex(),
                received_at_us=member.provenance.received_at_us,
                calling_ae=member.provenance.calling_ae,
                called_ae=member.provenance.called_ae,
                peer_address=member.provenance.peer_address,
                tls_subject=member.provenance.tls_subject,
                pack_id=pack_id,
                offset=member.dataset_offset,
                found_at_us=to_microseconds(self._clock.now()),
            )
            for member in found.lost
            if member.dataset_offset not in offsets
        ]


_ISSUER = 0x00100021


def _read(reader: PackReader, offset: int, length: int) -> Buffer:
    if length > COPY_MAX_BYTES:
        return reader.view(offset, length)
    return reader.read_range(offset, length)


def _holds(reader: PackReader, known: Known) -> bool:
    """Tell whether the dataset is whole, although no whole member begins in front of it."""
    _, version, copy = known
    try:
        digest = Extent(reader.read_range, copy.offset, version.length).sha256()
    except Damaged:
        return False
    return digest == version.sha256
