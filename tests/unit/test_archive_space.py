"""Disk space: what is counted, when a sender is paused, when it is refused."""

import os

import pytest

from appliance.archive.layout import Layout
from appliance.archive.space import HOPELESS_S, PAUSE_MAX_S, Space
from appliance.foundation.errors import OutOfSpace
from appliance.foundation.files import FileSystem
from tests.support.manual_clock import ManualClock

MIB = 2**20


class _Disk(FileSystem):
    free = 2**40

    def free_bytes(self, path):
        return self.free


def _space(tmp_path, capacity_bytes: int = 200 * MIB, disk: _Disk | None = None):
    disk, clock = disk or _Disk(), ManualClock()
    layout = Layout(str(tmp_path))
    layout.create(disk)
    return Space(disk, layout, capacity_bytes, clock), layout, clock, disk


def _pack(layout: Layout, name: str, size_bytes: int) -> str:
    path = layout.sealed_path(name)
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    return path


def test_packs_everywhere_count(tmp_path) -> None:
    """Open, closed, sealed and recalled; the spool does not: it has the reserve."""
    space, layout, _, _ = _space(tmp_path)
    writer = layout.writer_directory("receive")
    os.makedirs(writer)
    for number, folder in enumerate(
        (writer, layout.closed, layout.sealed, layout.recalled, layout.spool)
    ):
        with open(os.path.join(folder, "x.tar"), "wb") as file:
            file.truncate(10**number)
    assert space.measure() == 1111


def test_a_claim_is_counted_until_the_next_look(tmp_path) -> None:
    space, _, _, _ = _space(tmp_path)
    space.claim(30 * MIB)
    assert space.used_bytes == 30 * MIB
    space.measure()
    assert space.used_bytes == 0


def test_the_cache_is_full_after_a_pause(tmp_path) -> None:
    """A sender waits for eviction at most PAUSE_MAX_S, and then OutOfSpace says how full it is."""
    space, layout, clock, _ = _space(tmp_path)
    _pack(layout, "a", 199 * MIB)
    space.measure()
    began_s = clock.monotonic_s()
    with pytest.raises(OutOfSpace, match=r"199.* of 200"):
        space.claim(2 * MIB)
    assert PAUSE_MAX_S <= clock.monotonic_s() - began_s < PAUSE_MAX_S + 1


def test_where_it_was_hopeless_lately_nobody_waits_again(tmp_path) -> None:
    space, layout, clock, _ = _space(tmp_path)
    _pack(layout, "a", 200 * MIB)
    space.measure()
    with pytest.raises(OutOfSpace):
        space.claim(MIB)
    began_s = clock.monotonic_s()
    with pytest.raises(OutOfSpace):
        space.claim(MIB)
    assert clock.monotonic_s() == began_s
    clock.advance(HOPELESS_S)
    with pytest.raises(OutOfSpace):
        space.claim(MIB)
    assert clock.monotonic_s() >= began_s + HOPELESS_S + PAUSE_MAX_S


def test_eviction_in_the_pause_lets_the_sender_go_on(tmp_path) -> None:
    space, layout, clock, _ = _space(tmp_path)
    path = _pack(layout, "a", 200 * MIB)
    space.measure()
    real_wait = clock.wait
    waits = []

    def wait(event, timeout_s):
        waits.append(timeout_s)
        if len(waits) == 3:
            os.unlink(path)
        return real_wait(event, timeout_s)

    clock.wait = wait
    space.claim(MIB)
    assert len(waits) == 3


def test_the_reserve_of_the_disk_is_never_touched(tmp_path) -> None:
    """The cache is far from full, but the disk is not: the reserve is for spool and index."""
    disk = _Disk()
    disk.free = 70 * MIB
    space, _, _, _ = _space(tmp_path, 2**40, disk)
    disk.free = space.reserve_bytes + 5 * MIB
    space.measure()
    space.claim(5 * MIB)
    assert not space.try_claim(1)


def test_a_disk_smaller_than_the_cache_is_what_counts(tmp_path) -> None:
    disk = _Disk()
    space, layout, _, _ = _space(tmp_path, 2**40, disk)
    _pack(layout, "a", 100 * MIB)
    disk.free = space.reserve_bytes + 50 * MIB
    space.measure()
    assert space.usable_bytes == 150 * MIB


def test_many_waiting_senders_look_at_the_disk_once(tmp_path) -> None:
    """A look costs a scan of every pack: refused at once, a thousand instances cost one."""
    space, layout, _, disk = _space(tmp_path)
    _pack(layout, "a", 200 * MIB)
    space.measure()
    with pytest.raises(OutOfSpace):
        space.claim(MIB)
    looks = []
    disk.free_bytes = lambda path: looks.append(path) or 2**40
    for _ in range(1000):
        with pytest.raises(OutOfSpace):
            space.claim(MIB)
    assert len(looks) <= 1
