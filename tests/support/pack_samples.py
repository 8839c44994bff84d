"""Packs made by the real writer, and a file system that loses power or fails on purpose."""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from appliance.dicom.file_meta import build_file_meta
from appliance.foundation.errors import OutOfSpace, StorageFailed
from appliance.foundation.files import FileSystem
from appliance.packs.member import Member, Provenance, member_name
from appliance.packs.writer import PackWriter

CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
STUDY = "1.2.826.0.1.3680043.8.498.1"
SERIES = "1.2.826.0.1.3680043.8.498.1.1"
PACK_ID = "01jd2m6yt0v9rk3sa5xw7hq4ze"
SECTOR_BYTES = 512


def provenance(received_at_us: int = 1_732_400_000_123_456) -> Provenance:
    return Provenance(received_at_us, "MODALITY1", "AZEKURA", "192.0.2.7", "")


def file_meta(sop_instance_uid: str) -> bytes:
    return build_file_meta(CT_STORAGE, sop_instance_uid, EXPLICIT, "MODALITY1")


def element(tag: int, vr: str, value: bytes) -> bytes:
    """Return one element, explicit VR little endian (PS3.5 section 7.1.2)."""
    value += b"\0" * (len(value) % 2)
    key = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little") + vr.encode()
    if vr in {"OB", "OW", "UN", "UT"}:
        return key + b"\0\0" + len(value).to_bytes(4, "little") + value
    return key + len(value).to_bytes(2, "little") + value


def dataset(number: int, pixel_bytes: int = 2000) -> bytes:
    """Return a small CT instance, its pixels random but the same in every run."""
    pixels = random.Random(number).randbytes(pixel_bytes)
    return b"".join(
        (
            element(0x00080016, "UI", CT_STORAGE.encode()),
            element(0x00080018, "UI", f"{SERIES}.{number}".encode()),
            element(0x0020000D, "UI", STUDY.encode()),
            element(0x0020000E, "UI", SERIES.encode()),
            element(0x00200013, "IS", str(number).encode()),
            element(0x7FE00010, "OW", pixels),
        )
    )


def append(writer: PackWriter, number: int, content: bytes | None = None) -> Member:
    uid = f"{SERIES}.{number}"
    content = dataset(number) if content is None else content
    return writer.append(
        member_name(SERIES, uid),
        provenance(),
        EXPLICIT,
        file_meta(uid),
        content,
        hashlib.sha256(content).digest(),
    )


def pack_path(folder: Path, pack_id: str = PACK_ID) -> str:
    return str(folder / f"{pack_id}.tar")


def closed_pack(folder: Path, count: int, files: FileSystem | None = None) -> str:
    """Return the path of a closed pack of `count` instances."""
    writer = PackWriter(files or FileSystem(), pack_path(folder), STUDY)
    for number in range(count):
        append(writer, number)
    writer.sync()
    writer.close()
    return writer.path


class PowerCut(BaseException):
    """The machine is gone; nothing of ours catches this."""


class FailingFiles(FileSystem):
    """Fails at the N-th changing operation (1 is the first), and counts them.

    `fail` makes the error: a full disk, a broken one, or a power cut.
    """

    def __init__(self, at: int = 0, fail: Callable[[str], BaseException] = PowerCut) -> None:
        self.count = 0
        self.calls: list[str] = []
        self._at = at
        self._fail = fail

    def _step(self, name: str) -> None:
        self.count += 1
        self.calls.append(name)
        if self.count == self._at:
            raise self._fail(name)

    def pwritev(self, fd, buffers, offset):
        self._step("pwritev")
        return super().pwritev(fd, buffers, offset)

    def preallocate(self, fd, offset, length, *, written=False):
        self._step("preallocate")
        super().preallocate(fd, offset, length)

    def truncate(self, fd, length):
        self._step("truncate")
        super().truncate(fd, length)

    def fdatasync(self, fd):
        self._step("fdatasync")
        super().fdatasync(fd)

    def fsync_directory(self, path):
        self._step("fsync_directory")
        super().fsync_directory(path)


def full_disk(operation: str) -> OutOfSpace:
    return OutOfSpace(operation, "test", "No space left on device")


def broken_disk(operation: str) -> StorageFailed:
    return StorageFailed(operation, "test", "Input/output error")


class ForgetfulFiles(FailingFiles):
    """Remembers what was flushed of each file, so that a power cut can forget the rest.

    The cut comes at the N-th operation; a write at which it comes may have reached the medium in
    part. Directory entries are taken for durable as soon as they are made.
    """

    def __init__(self, at: int = 0) -> None:
        super().__init__(at)
        self._flushed: dict[str, bytes] = {}

    def open(self, path, flags, mode=0o660):
        fd = super().open(path, flags, mode)
        self._flushed.setdefault(path, Path(path).read_bytes())
        return fd

    def pwritev(self, fd, buffers, offset):
        try:
            self._step("pwritev")
        except PowerCut:
            FileSystem.pwritev(self, fd, buffers, offset)
            raise
        return FileSystem.pwritev(self, fd, buffers, offset)

    def fdatasync(self, fd):
        super().fdatasync(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        self._flushed[path] = Path(path).read_bytes()

    def rename(self, source, target):
        super().rename(source, target)
        self._flushed[target] = self._flushed.pop(source, b"")

    def cut_power(self, seed: int) -> None:
        """Leave on disk of each file what was flushed, and of the rest any sectors at all."""
        draw = random.Random(seed)
        for path, flushed in self._flushed.items():
            if os.path.exists(path):
                Path(path).write_bytes(survivors(draw, flushed, Path(path).read_bytes()))


def survivors(draw: random.Random, flushed: bytes, written: bytes) -> bytes:
    """Return what a power cut may leave of a file: any sectors of what was not flushed."""
    length = draw.choice((len(flushed), len(written)))
    chance = draw.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    sectors = []
    for at in range(0, length, SECTOR_BYTES):
        source = written if draw.random() < chance else flushed
        sectors.append(source[at : at + SECTOR_BYTES].ljust(SECTOR_BYTES, b"\0"))
    return b"".join(sectors)[:length]


def copy_pack(path: str, folder: Path) -> str:
    """Return the path of a copy with the same pack id in another folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return str(shutil.copy(path, folder / os.path.basename(path)))
