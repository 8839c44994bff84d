"""An erasure cut short at any step of the disk, by a kill or by power loss, or at any deletion."""

import copy
import os
import shutil
from pathlib import Path

import pytest

from appliance.archive.disposal import read_certificate
from appliance.archive.disposal_plan import PlanFile
from appliance.archive.records import Erased
from appliance.foundation.errors import CloudUnavailable
from tests.support.archive_box import Box, entries, sample
from tests.support.dying_files import Mortal, PowerFiles
from tests.support.fake_store import FakeStore, lost_answer, no_answer
from tests.support.keeping import RETENTION_S, disposal, erasure, intents, plan_of, received
from tests.support.manual_clock import ManualClock
from tests.support.pack_samples import PowerCut

STEPS_LEAST = 10
SEEDS = range(2)
STUDY, OTHER = sample(1, 1).study, sample(2, 1).study


class World:
    """A node with an expired study of two packs, made once and copied for every way to die."""

    def __init__(self, folder: Path) -> None:
        clock = ManualClock()
        self.store = FakeStore(clock)
        box = Box(folder, self.store, clock=clock)
        for study, number in ((1, 1), (1, 2), (2, 1)):
            received(box, sample(study, number))
        clock.advance(RETENTION_S + 1)
        self.file = plan_of(box, STUDY)
        self.folder = folder
        self.now = clock.now()
        box.close()

    def copied(self, to: Path) -> FakeStore:
        """Copy the node's folder; return its bucket, a copy too, with a clock of its own."""
        shutil.copytree(self.folder, to)
        clock = ManualClock(self.now)
        store = FakeStore(clock)
        store._keys = copy.deepcopy(self.store._keys)
        store._next_version = self.store._next_version
        return store


def erase(box: Box, file: PlanFile) -> None:
    """Run and settle as the administrator's command and the uplink do."""
    each = erasure(box, box.store)
    each.prove(file.plan, lambda _: None)
    each.run(file, "admin", "AKIA", lambda _: None)
    uplink = disposal(box)
    assert uplink.settle(file.sha256) is None
    box.write_ledger()
    assert uplink.settle(file.sha256)


def check(box: Box, file: PlanFile) -> None:
    """After a start, everything says the same of each version: gone for all, or there for all."""
    begun = bool(intents(box).open())
    uplink = disposal(box)
    for _ in range(3):
        uplink.run_once()
        box.write_ledger()
    assert uplink.problems() == []
    assert intents(box).open() == []
    gone = {each.pack_id for each in file.plan.packs if each.key not in box.store.keys()}  # noqa: SIM118
    records = [record for entry in entries(box.store, box.recovery) for record in entry.records]
    assert sorted(each.pack_id for each in records if isinstance(each, Erased)) == sorted(gone)
    left = {each.pack_id for each in file.plan.packs} - gone
    for pack_id in gone | left:
        assert (box.pack(pack_id).state == "erased") == (pack_id in gone)
        assert os.path.exists(box.layout.sealed_path(pack_id)) == (pack_id in left)
    assert len(box.served()) == 1 + len(left)
    path = intents(box).certificate_path(file.sha256)
    assert os.path.exists(path) == (begun or bool(gone))
    if os.path.exists(path):
        with open(path, "rb") as source:
            (study,) = read_certificate(source.read())[0].studies
        assert {each.pack_id for each in study.erased} == gone
        assert set(study.left) == left


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "site")


def steps_of(world: World, folder: Path) -> int:
    steps = Mortal()
    store = world.copied(folder)
    box = Box(folder, store, clock=store._clock, files=PowerFiles(steps, folder, 0))
    box.uplink  # noqa: B018 - what a start writes is proved elsewhere
    before = steps.count
    erase(box, world.file)
    box.close()
    assert steps.count - before > STEPS_LEAST
    return steps.count - before


@pytest.mark.parametrize("power", [False, True])
def test_an_erasure_cut_short_at_any_step_is_settled(
    world: World, tmp_path: Path, power: bool
) -> None:
    """What is gone is in the ledger once and on no disk; what is left is untouched; certified."""
    for at in range(1, steps_of(world, tmp_path / "count") + 1):
        for seed in SEEDS if power else (0,):
            folder = tmp_path / f"{at}-{seed}"
            store = world.copied(folder)
            steps = Mortal()
            files = PowerFiles(steps, folder, seed)
            box = Box(folder, store, clock=store._clock, files=files)
            box.uplink  # noqa: B018
            steps.arm(at, files.cut if power else int)
            with pytest.raises(PowerCut):
                erase(box, world.file)
            box.index.close()
            again = Box(folder, store, clock=store._clock)
            check(again, world.file)
            again.close()
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("operation", "fault"),
    [("delete_version", no_answer), ("delete_version", lost_answer), ("head", no_answer)],
)
def test_an_erasure_whose_line_breaks_anywhere_is_settled(
    world: World, tmp_path: Path, operation: str, fault
) -> None:
    """Before or after the far side did it: the bucket's own word is what is written down."""
    for at in range(8 if operation == "head" else 2):
        folder = tmp_path / f"{at}"
        store = world.copied(folder)
        box = Box(folder, store, clock=store._clock)
        box.uplink  # noqa: B018
        real, calls = getattr(store, operation), iter(range(99))

        def broken(*args, real=real, calls=calls, at=at, store=store, **more):
            if next(calls) == at:
                store.fail(operation, fault())
            return real(*args, **more)

        setattr(store, operation, broken)
        with pytest.raises(CloudUnavailable):
            erase(box, world.file)
        delattr(store, operation)
        box.index.close()
        again = Box(folder, store, clock=store._clock)
        check(again, world.file)
        again.close()
