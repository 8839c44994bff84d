"""What in the uplink looks after packs that broke or may: salvage, repair, scrub, and their loops.

Owns no decision; it puts parts together. One for a daemon; its loops run on the daemon's threads.
"""

import os
import threading
from collections.abc import Callable

from appliance.archive.cloud_scrub import CloudScrub
from appliance.archive.damage_report import CLOUD
from appliance.archive.damaged import DamagedBook
from appliance.archive.disk_trouble import DiskTrouble
from appliance.archive.problem import Problem
from appliance.archive.recall import Recaller
from appliance.archive.repair import PendingPacks, Repairer
from appliance.archive.salvage import Salvager
from appliance.archive.scrub import Scrub
from appliance.daemons.parts import Parts
from appliance.remote.store import ObjectStore

REPAIR_S = 1.0
SCRUB_S = 10.0
SCRUB_NICE = 19

Loop = tuple[str, float, Callable[[], object]]


class _NobodyAtWork:
    """The pending packs of a node that uploads none."""

    def borrow(self, _pack_id: str) -> bool:
        return True

    def give_back(self, _pack_id: str) -> None:
        """Do nothing."""


class Mending:
    """The parts; `loops` are the bodies to be called again and again, with their periods."""

    def __init__(
        self, parts: Parts, store: ObjectStore, recaller: Recaller, stop: threading.Event
    ) -> None:
        """Take over; `store`: the bucket alone; `recaller` may read replicas."""
        config = parts.config
        self._recaller = recaller
        files, clock, layout, index = parts.files, parts.clock, parts.layout, parts.index
        damaged = DamagedBook(files, layout)
        salvager = Salvager(files, clock, layout, index, parts.identities(), damaged)
        self.cloud = CloudScrub(
            files, clock, layout, index, store, recaller, salvager,
            config.node.name if config.writes else "", config.scrub, stop,
        )  # fmt: skip
        self.repairer = Repairer(
            files, clock, layout, index, recaller, salvager, damaged,
            DiskTrouble(files, clock, layout), self.cloud.suspect,
        )  # fmt: skip
        self.scrub = Scrub(
            files, clock, layout, index, config.scrub.period_s,
            lambda pack_id, why: self.ask(pack_id, why, "scrub"), stop,
        )  # fmt: skip

    def ask(self, pack_id: str, why: str, by: str) -> None:
        """Have a pack looked at that somebody found damaged; durable on return."""
        if why == CLOUD:
            self.cloud.suspect(pack_id)
        else:
            self.repairer.ask(pack_id, why, by)

    def stop(self) -> None:
        """End what waits for a pack, however slow the line is."""
        self._recaller.stop()

    def loops(self, pending: PendingPacks | None) -> list[Loop]:
        """Return each loop's name, period and body; `pending`: who uploads packs here."""
        packs = pending if pending is not None else _NobodyAtWork()
        return [
            ("repair", REPAIR_S, lambda: self.repairer.run_once(packs)),
            ("refill", REPAIR_S, self.repairer.refill_once),
            ("scrub", SCRUB_S, self._scrub),
            ("cloud-scrub", SCRUB_S, self.cloud.run_once),
        ]

    def _scrub(self) -> None:
        # Linux has a niceness for each thread, and the disk's queue heeds it.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SCRUB_NICE)
        self.scrub.run_once()

    def salvage(self, pack_id: str) -> bool:
        """Take a damaged pending pack out of the way; False when it is sound."""
        return not self.repairer.salvage(pack_id).sound

    def problems(self) -> list[Problem]:
        """Return what status is to show."""
        return [*self.repairer.problems(), *self.cloud.problems()]

    def scrubbed(self) -> dict[str, object]:
        """Return what of all has been reread, as status shows it."""
        return {**self.scrub.document(), "cloud": self.cloud.document()}
