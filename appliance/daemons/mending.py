"""What in the uplink looks after packs that broke: salvage, repair, and the loops around them.

Owns no decision; it puts parts together. One for a daemon; its loops run on the daemon's threads.
"""

from collections.abc import Callable

from appliance.archive.damaged import DamagedBook
from appliance.archive.disk_trouble import DiskTrouble
from appliance.archive.problem import Problem
from appliance.archive.recall import Recaller
from appliance.archive.repair import PendingPacks, Repairer
from appliance.archive.salvage import Salvager
from appliance.daemons.parts import Parts

REPAIR_S = 1.0

Loop = tuple[str, float, Callable[[], object]]


class _NobodyAtWork:
    """The pending packs of a node that uploads none."""

    def borrow(self, _pack_id: str) -> bool:
        return True

    def give_back(self, _pack_id: str) -> None:
        """Do nothing."""


class Mending:
    """The parts; `loops` are the bodies to be called again and again, with their periods."""

    def __init__(self, parts: Parts, recaller: Recaller) -> None:
        files, clock, layout, index = parts.files, parts.clock, parts.layout, parts.index
        damaged = DamagedBook(files, layout)
        salvager = Salvager(files, clock, layout, index, parts.identities(), damaged)
        self.repairer = Repairer(
            files, clock, layout, index, recaller, salvager, damaged,
            DiskTrouble(files, clock, layout),
        )  # fmt: skip

    def loops(self, pending: PendingPacks | None) -> list[Loop]:
        """Return each loop's name, period and body; `pending`: who uploads packs here."""
        packs = pending if pending is not None else _NobodyAtWork()
        return [
            ("repair", REPAIR_S, lambda: self.repairer.run_once(packs)),
            ("refill", REPAIR_S, self.repairer.refill_once),
        ]

    def salvage(self, pack_id: str) -> bool:
        """Take a damaged pending pack out of the way; False when it is sound."""
        return not self.repairer.salvage(pack_id).sound

    def problems(self) -> list[Problem]:
        """Return what status is to show."""
        return self.repairer.problems()
