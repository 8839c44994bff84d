"""Following another node's ledger, cut short at any step by a kill or by power loss."""

import tempfile
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from appliance.archive.findings import Kind
from appliance.archive.ledger_entry import entry_key
from tests.support.dying_files import Mortal, PowerFiles, die_around_commits
from tests.support.made_ledger import put_object
from tests.support.pack_samples import PowerCut
from tests.support.standby_box import Sites, StandbyBox

STEPS_LEAST = 40
MEMORY = "/dev/shm"
"""What a power cut forgets is told by the file layer: every flush of a disk would be waited for."""
LOST = entry_key("site-a", 2)


class Inline(Executor):
    """Does at once what is submitted: every step belongs to the thread that lives."""

    def submit(self, work, /, *arguments, **named):
        done: Future = Future()
        done.set_result(work(*arguments, **named))
        return done


class World:
    """A bucket to which things happen, and the disk of a standby."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.sites = Sites(folder)
        self.lost = b""
        self.stage = 0

    def open(self, files=None) -> StandbyBox:
        box = self.sites.box("data", files=files)
        for follower in box.follower._followers.values():
            follower._pool = Inline()
        return box

    def happen(self, stage: int) -> None:
        """Let the next thing happen in the bucket, once."""
        if stage < self.stage:
            return
        self.stage = stage + 1
        if stage == 0:
            self.sites.write(1, 2, 3)
            self.sites.write(4, ledger=self.sites.b)
            self.lost = self.sites.store.content(LOST)
            version = next(iter(self.sites.store.versions(LOST)))
            self.sites.store.delete_version(LOST, version.version_id)
        elif stage == 1:
            put_object(self.sites.store, LOST, self.lost)
            self.sites.clock.advance(120.0)
        else:
            self.sites.write(5)

    def live(self, box: StandbyBox) -> None:
        """A gap, its filling, a further entry: each followed."""
        for stage in range(3):
            self.happen(stage)
            box.follow()
            if stage == 0:
                assert box.found() == [(Kind.MISSING, 2, 2)]

    def go_on(self) -> None:
        """Start again and see that nothing is missing: now, and in an index made of the copies."""
        box = self.open()
        for stage in range(3):
            self.happen(stage)
        box.follow()
        self.sites.clock.advance(120.0)
        box.follow()
        assert box.studies() == {1, 2, 3, 4, 5}
        assert box.found() == []
        fresh = self.sites.box("fresh")
        fresh.follow()
        assert box.fingerprint() == fresh.fingerprint()
        taker = box.follower._followers["site-a"]._taker
        assert all(taker.copy(sequence) is not None for sequence in (1, 2, 3, 4))

    def close(self) -> None:
        for box in self.sites.boxes:
            box.close()


def one(folder: Path, at: int, *, power: bool, kind: type[World] = World) -> tuple[World, Mortal]:
    """Return a world whose standby ended at a step, or with 0 lived through; and the steps."""
    world = kind(folder)
    steps = Mortal()
    files = PowerFiles(steps, folder, at)
    undo = die_around_commits(steps)
    box = world.open(files)
    steps.count = 0
    steps.arm(at, files.cut if power else int)
    try:
        if at:
            with pytest.raises(PowerCut):
                world.live(box)
            box.close()
            world.sites.boxes.remove(box)
        else:
            world.live(box)
    finally:
        undo()
    return world, steps


@pytest.mark.parametrize("power", [False, True])
def test_following_that_ends_at_any_step_misses_nothing(power: bool) -> None:
    """No entry is passed by, no gap forgotten, and the copies are those of what is applied."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        world, steps = one(folder / "count", 0, power=False)
        world.close()
        total = steps.count
        assert total > STEPS_LEAST
        for at in range(1, total + 1):
            world, _ = one(folder / f"{at}", at, power=power)
            world.go_on()
            world.close()
