"""The parts that repair, over a box; and damage to packs, as disks do it."""

import errno
import os
import threading
from pathlib import Path

import pytest

from appliance.archive.damage_report import reporter
from appliance.archive.damaged import DamagedBook
from appliance.archive.disk_trouble import DiskTrouble
from appliance.archive.repair import Repairer
from appliance.archive.salvage import Salvager
from appliance.packs.header import PAX_NAME
from tests.support.archive_box import Box, Sample

GENEROUS_LOOKS = 6000


class Mended:
    """A box whose uplink, readers and requests are wired to a repairer, as the daemons do it."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.damaged = DamagedBook(box.files, box.layout)
        self.salvager = Salvager(
            box.files, box.clock, box.layout, box.index, box.identities, self.damaged
        )
        self.disk = DiskTrouble(box.files, box.clock, box.layout)
        self.repairer = Repairer(
            box.files, box.clock, box.layout, box.index, box.recaller, self.salvager, self.damaged,
            self.disk,
        )  # fmt: skip
        box.retrieval._report = reporter(box.requests, "read")
        box.uplink._salvage = lambda pack_id: not self.repairer.salvage(pack_id).sound

    def control(self):
        """Return what answers requests, the repairer's too."""
        control = self.box.control()
        control._repair = self.repairer.ask
        return control

    def repair(self) -> None:
        """Carry out what was asked, and bring back what is away."""
        self.control().run_once()
        self.box.clock.advance(61)
        self.repairer.run_once(self.box.uplink)
        self.repairer.refill_once()

    def conditions(self) -> set[str]:
        return {each.condition for each in self.repairer.problems()}

    def set_aside(self) -> list[str]:
        return sorted(os.listdir(self.box.layout.set_aside))


@pytest.fixture
def mended(box: Box) -> Mended:
    return Mended(box)


def wait_for_recalls(box: Box) -> None:
    """Return when no pack is on its way back any more."""
    pause = threading.Event()
    for _ in range(GENEROUS_LOOKS):
        if not box.recaller._recalls:
            return
        pause.wait(0.01)
    raise AssertionError("a recall does not end")


def pack_path(box: Box, pack_id: str) -> str:
    """Return where the pack lies."""
    return next(path for path in box.layout.candidates(pack_id) if os.path.exists(path))


def packs_by_study(box: Box) -> list[str]:
    """Return the packs of studies of one pack each, by Study UID: ids of a moment have no order."""
    return [
        each.pack_id
        for each in sorted(
            {each.pack_id: each for each in box.served()}.values(),
            key=lambda each: each.study_instance_uid,
        )
    ]


def flip_dataset(box: Box, pack_id: str, each: Sample) -> None:
    """Change a bit of an instance's pixels."""
    path = Path(pack_path(box, pack_id))
    raw = bytearray(path.read_bytes())
    raw[raw.index(each.dataset[-50:])] ^= 1
    path.write_bytes(raw)


def flip_header(box: Box, pack_id: str, each: Sample) -> None:
    """Change a bit of the tar header in front of an instance."""
    path = Path(pack_path(box, pack_id))
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(PAX_NAME, 0, raw.index(each.dataset[:60])) + 200] ^= 1
    path.write_bytes(raw)


def fail_reads(monkeypatch: pytest.MonkeyPatch, box: Box, *pack_ids: str) -> set[str]:
    """Let the disk fail to read packs, until they leave the set that is returned."""
    real = os.pread
    broken = set(pack_ids)
    inodes = {os.stat(pack_path(box, pack_id)).st_ino: pack_id for pack_id in pack_ids}

    def pread(fd: int, length: int, offset: int) -> bytes:
        if inodes.get(os.fstat(fd).st_ino) in broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    return broken
