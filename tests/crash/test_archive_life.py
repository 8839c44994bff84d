"""Any life of an archive, with deaths, outages and lost indexes: what was promised is kept.

A state machine of hypothesis makes the lives; `archive_life` lives them and knows the promises. A
life that breaks one is shrunk and printed as the steps that lead there; that is the bug report.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.archive_box import create_keys
from tests.support.archive_life import Life, samples
from tests.support.fake_store import corrupt, lost_answer, no_answer
from tests.support.memory_folder import memory_path  # noqa: F401

STEPS_MAX = 90
STEPS_SOON = 12
SHORT = settings(max_examples=60, stateful_step_count=30)
LONG = settings(max_examples=250, stateful_step_count=50)
SEEDS = range(10)
SAMPLES = samples()

# Half of them soon: a death right behind a store or a flush is worth more than one anywhere.
steps_until_death = st.one_of(st.integers(1, STEPS_SOON), st.integers(1, STEPS_MAX))
deaths = st.lists(
    st.tuples(steps_until_death, st.booleans(), st.integers(0, 2**16)), min_size=1, max_size=3
)
number = st.integers(0, 30)
of_sample = st.integers(0, len(SAMPLES) - 1)


class Archive(RuleBasedStateMachine):
    """Rules are what happens to a node. Each may meet the death that `arm` has set."""

    keys: Path
    tally: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="life-", dir=self.keys.parent))
        self.life = Life(self.folder, self.keys)
        self.older_index: Path | None = None

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else the life has failed already
                self._last_look()
        finally:
            self.tally["lives"] += 1
            self.tally["deaths"] += self.life.deaths
            self.tally["steps"] += self.life.steps.count
            self.life.close()
            shutil.rmtree(self.folder)

    def _last_look(self) -> None:
        """The strictest end: all verified, all evicted, no index; and all is there."""
        life = self.life
        life.end()
        life.settle()
        for pack_id in life.packs():
            life.evict(pack_id)
        life.end(shutil.rmtree)
        assert life.uplink() is not None  # it teaches the empty index what the ledger says
        life.look()

    def _pack(self, which: int) -> str | None:
        packs = self.life.packs()
        return packs[which % len(packs)] if packs else None

    # --- receiving

    @initialize(first=st.lists(of_sample, min_size=1, max_size=4))
    def begin(self, first) -> None:
        for which in first:
            self.life.store(SAMPLES[which])

    @rule(which=of_sample)
    def store(self, which) -> None:
        self.life.live(lambda: self.life.store(SAMPLES[which]))

    @rule()
    def close_packs(self) -> None:
        self.life.live(self.life.close_packs)

    @rule()
    def index(self) -> None:
        self.life.live(lambda: self.life.box.indexer().run_once())

    @rule()
    def receiver_dies(self) -> None:
        self.life.live(self.life.receiver_dies)

    # --- the way to the cloud

    @rule()
    def upload(self) -> None:
        self.life.live(self.life.upload)

    @rule()
    def write_ledger(self) -> None:
        self.life.live(self.life.write_ledger)

    @rule()
    def drain(self) -> None:
        self.life.live(self.life.drain)

    @rule()
    def uplink_dies(self) -> None:
        self.life.uplink_dies()

    @rule(kind=st.sampled_from(["reject", "restore"]), which=number)
    def ask(self, kind, which) -> None:
        known = sorted(self.life.promised)
        each = self.life.promised[known[which % len(known)]][0]
        self.life.live(lambda: self.life.ask(kind, each))

    @rule()
    def answer_requests(self) -> None:
        self.life.live(self.life.answer_requests)

    # --- cache and index

    @rule(which=number)
    def evict(self, which) -> None:
        pack_id = self._pack(which)
        if pack_id is not None:
            self.life.live(lambda: self.life.evict(pack_id))

    @rule(which=number)
    def recall(self, which) -> None:
        pack_id = self._pack(which)
        if pack_id is not None:
            self.life.live(lambda: self.life.recall(pack_id))

    @rule(which=number)
    def rot(self, which) -> None:
        pack_id = self._pack(which)
        if pack_id is not None:
            self.life.damage(pack_id)

    @rule()
    def rebuild(self) -> None:
        self.life.live(self.life.rebuild)

    @rule()
    def keep_index(self) -> None:
        """Keep a copy of the index, to be put back later in place of a newer one."""
        self.older_index = self.folder / "older-index"
        shutil.rmtree(self.older_index, ignore_errors=True)
        shutil.copytree(self.folder / "data" / "index", self.older_index)

    @rule(older=st.booleans())
    def lose_index(self, older) -> None:
        def lose(directory: Path) -> None:
            shutil.rmtree(directory)
            if older and self.older_index is not None:
                shutil.copytree(self.older_index, directory)

        self.life.armed.clear()
        self.life.bucket.offline = False
        self.life.bucket._faults.clear()
        self.life.end(lose)
        assert self.life.uplink() is not None

    # --- what breaks

    @rule(deaths=deaths)
    def arm(self, deaths) -> None:
        self.life.arm(deaths)

    @rule()
    def all_die(self) -> None:
        self.life.end()

    @rule()
    def line_goes(self) -> None:
        self.life.bucket.offline = True

    @precondition(lambda self: self.life.bucket.offline)
    @rule()
    def line_returns(self) -> None:
        self.life.bucket.offline = False

    @rule(
        method=st.sampled_from(["put", "head", "get", "versions", "server_time"]),
        fault=st.sampled_from([no_answer, lost_answer]),
    )
    def answer_is_lost(self, method, fault) -> None:
        self.life.bucket.fail(method, fault())

    @rule()
    def copy_is_damaged_on_the_way(self) -> None:
        self.life.bucket.fail("get", corrupt())

    @rule()
    def bucket_keeps_no_lock(self) -> None:
        """It answers 200 and forgets the lock; until somebody sets it right."""
        self.life.bucket.carries_lock = not self.life.bucket.carries_lock

    @rule()
    def thief(self) -> None:
        self.life.thief()

    # --- the oracle

    @rule()
    def look(self) -> None:
        self.life.look()

    @rule()
    def settle(self) -> None:
        self.life.settle()


def _run(folder: Path, capsys, profile: settings, of_seed: int | None = None) -> dict[str, int]:
    keys = folder / "keys"
    keys.mkdir()
    create_keys(keys)
    tally = {"lives": 0, "deaths": 0, "steps": 0}
    machine = type("ArchiveLife", (Archive,), {"keys": keys, "tally": tally})
    if of_seed is not None:
        machine = seed(of_seed)(machine)
    how = settings(
        profile, deadline=None, database=None, derandomize=of_seed is None, print_blob=True,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        # Shrinking takes minutes, and the steps of a life are short enough to be read as they are.
        phases=[Phase.generate, *([Phase.shrink] if "LIFE_SHRINK" in os.environ else [])],
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=how)
    name = "fixed" if of_seed is None else of_seed
    with capsys.disabled():
        print(f"\narchive lives, seed {name}: {tally}")
    return tally


@pytest.mark.timeout(300)
def test_a_life_keeps_its_promises(memory_path: Path, capsys) -> None:
    """Some dozens of lives, the same in every run."""
    tally = _run(memory_path, capsys, SHORT)
    assert tally["deaths"] > tally["lives"] / 2


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("of_seed", [int(os.environ.get("LIFE_SEED", "0")) + n for n in SEEDS])
def test_any_life_keeps_its_promises(memory_path: Path, capsys, of_seed: int) -> None:
    """Thousands; a failure prints its seed and its steps. LIFE_SEED begins elsewhere."""
    _run(memory_path, capsys, LONG, of_seed)
