"""A cold start from checkpoints, cut short at any step by power loss."""

import tempfile
from pathlib import Path

from appliance.archive.checkpoint_read import kept_directory
from appliance.archive.rebuild import rebuild
from appliance.seal.identity import Identity
from tests.crash.test_follow_power import MEMORY, World, one
from tests.support.standby_box import StandbyBox

STEPS_LEAST = 15
ALL = {1, 2, 3, 4, 5, 6, 7}


class LateWorld(World):
    """A history that is sealed to others, and its checkpoints, which are sealed to the standby."""

    def happen(self, stage: int) -> None:
        if stage < self.stage:
            return
        self.stage = stage + 1
        ledger = self.sites.a
        if stage == 0:
            mine, site = self.sites.identities, Identity.generate()
            ledger.recipients, self.sites.identities = [site.recipient], [site]
            self.sites.write(1, 2, 3, 4, 5, 6)
            ledger.recipients = [site.recipient, mine[0].recipient]
            self.sites.write_checkpoints(since=7, level_entries=(4,))
            self.sites.identities = mine
            self.sites.write(7)

    def live(self, box: StandbyBox) -> None:
        self.happen(0)
        box.follow()

    def go_on(self) -> None:
        """Start again: all is found, now and in an index that is made of this disk alone."""
        box = self.open()
        self.happen(0)
        box.follow()
        assert box.studies() == ALL
        assert box.found() == []
        before = box.fingerprint()
        rebuild(
            box.layout, box.index, "standby", box.identities, None, lambda _amount: None,
            box.others(offline=True),
        )  # fmt: skip
        assert box.fingerprint() == before
        kept = Path(kept_directory(box.layout, "site-a"))
        assert len(list(kept.iterdir())) == 2


def test_a_cold_start_that_ends_at_any_step_reads_the_whole_history() -> None:
    """What is kept was proved and is whole, and no entry is left out."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        world, steps = one(folder / "count", 0, power=False, kind=LateWorld)
        world.close()
        assert steps.count > STEPS_LEAST
        for at in range(1, steps.count + 1):
            world, _ = one(folder / f"{at}", at, power=True, kind=LateWorld)
            world.go_on()
            world.close()
