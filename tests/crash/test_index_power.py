"""A rebuild of the index that is cut short at any step, by a kill or by power loss."""

import os
from pathlib import Path

from tests.support.archive_box import create_keys, sample
from tests.support.archive_life import Life
from tests.support.memory_folder import memory_path  # noqa: F401

STEPS_LEAST = 15
STATES = ["evicted", "cached", "pending", "pending", "pending"]


def _states(life: Life) -> list[str]:
    return [life.box.pack(each).state for each in life.packs()]


def _generations(life: Life) -> list[str]:
    return [name for name in os.listdir(life.box.layout.index) if name.isdigit()]


def test_a_rebuild_that_ends_at_any_step_leaves_a_whole_index(memory_path: Path) -> None:
    """The old one or the new one, and the next rebuild goes through; nothing was lost or doubled.

    Over packs in every place: in the bucket alone, here too, sealed, closed and open.
    """
    keys = memory_path / "keys"
    keys.mkdir()
    create_keys(keys)
    life = Life(memory_path / "life", keys)
    life.store(sample(1, 1))
    life.drain()
    life.evict(life.packs()[0])
    life.store(sample(2, 1))
    life.drain()
    life.store(sample(3, 1))
    life.box.close_packs()
    life.uplink()._seal_closed()
    life.store(sample(4, 1))
    life.box.close_packs()
    life.store(sample(5, 1))
    life.box.indexer().catch_up()
    before = life.steps.count
    life.rebuild()
    total = life.steps.count - before
    assert total > STEPS_LEAST
    for at in range(1, total + 1):
        for power in (False, True):
            deaths = life.deaths
            life.arm([(at, power, at)])
            life.live(life.rebuild)
            assert life.deaths == deaths + 1
            life.look()
            assert _states(life) == STATES, f"step {at}, power {power}"
    life.arm([])
    life.rebuild()
    assert len(_generations(life)) == 1
    life.settle()
    life.close()
