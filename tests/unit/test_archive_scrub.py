"""Packs on this disk reread within a period: coverage, pace, what is found."""

import os
import threading
from datetime import timedelta

import pytest

from appliance.archive.damage_report import reporter
from appliance.archive.evict import Evictor
from appliance.archive.scrub import READ_BYTES_PER_S, Scrub
from appliance.archive.verify import Verification
from tests.support.archive_box import Box, sample
from tests.support.mending import (
    Mended,
    fail_reads,
    flip_dataset,
    flip_header,
    mended,  # noqa: F401
    pack_path,
    packs_by_study,
)

DAY_S = 86400.0
PERIOD_S = 30 * DAY_S
PACKS = 6


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs here is not the node's business."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


class Scrubbed:
    """A scrub over a box, and what it told."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.told: list[tuple[str, str]] = []
        self.stop = threading.Event()
        self.scrub = Scrub(
            box.files, box.clock, box.layout, box.index, PERIOD_S,
            lambda pack_id, why: self.told.append((pack_id, why)), self.stop,
        )  # fmt: skip

    def days(self, count: float, step_s: float = DAY_S / 4) -> int:
        """Let days pass, with a turn every few hours; return how many packs were checked."""
        checked = 0
        end = self.box.clock.now().timestamp() + count * DAY_S
        while self.box.clock.now().timestamp() < end:
            checked += self.scrub.run_once()
            self.box.clock.advance(step_s)
        return checked + self.scrub.run_once()


@pytest.fixture
def packs(box: Box) -> list[str]:
    for study in range(PACKS):
        box.store_sample(sample(study, 1))
    box.drain()
    return packs_by_study(box)


def test_every_pack_is_reread_within_the_period(box: Box, packs: list[str]) -> None:
    """And spread over it: not all at once, and again in the next one."""
    scrubbed = Scrubbed(box)
    assert 0 < scrubbed.days(10) < PACKS
    shown = scrubbed.scrub.document()
    assert 0 < shown["checked_share"] < 1
    assert scrubbed.days(19) > 0
    assert scrubbed.scrub.document()["checked_share"] == 1.0
    assert scrubbed.days(30) in {PACKS, PACKS + 1}
    assert scrubbed.told == []


def test_the_oldest_unchecked_is_never_older_than_the_period(box: Box, packs: list[str]) -> None:
    scrubbed = Scrubbed(box)
    scrubbed.days(31)
    for _ in range(40):
        scrubbed.days(1)
        oldest = scrubbed.scrub.document()["oldest_unchecked_at"]
        assert oldest > _days_ago(box, 33)


def _days_ago(box: Box, days: int) -> str:
    return (box.clock.now() - timedelta(days=days)).isoformat()


@pytest.mark.parametrize(
    ("damage", "why"), [(flip_dataset, "damaged"), (flip_header, "damaged"), (None, "unreadable")]
)
def test_damage_is_found_and_told(box: Box, packs, monkeypatch, damage, why: str) -> None:
    """In a dataset, in a header, in a sector: within the period, once a cycle, and counted."""
    bad = packs[3]
    if damage is None:
        fail_reads(monkeypatch, box, bad)
    else:
        damage(box, bad, sample(3, 1))
    scrubbed = Scrubbed(box)
    scrubbed.days(25)
    assert scrubbed.told == [(bad, why)]
    assert scrubbed.scrub.document()["findings"] == 1


def test_what_is_found_is_repaired(box: Box, packs, mended: Mended) -> None:
    flip_dataset(box, packs[0], sample(0, 1))
    scrubbed = Scrubbed(box)
    scrubbed.scrub._report = lambda pack_id, why: mended.repairer.ask(pack_id, why, "scrub")
    scrubbed.days(25)
    mended.repair()
    assert mended.repairer.document()["refilled"] == 1
    assert scrubbed.days(30) == PACKS
    assert scrubbed.scrub.document()["findings"] == 0


def test_a_pack_that_was_removed_is_told_within_hours(box: Box, packs) -> None:
    """Removed behind our back: nobody may ask for it for a month."""
    scrubbed = Scrubbed(box)
    scrubbed.days(1)
    os.unlink(pack_path(box, packs[1]))
    scrubbed.days(0.5)
    assert scrubbed.told == [(packs[1], "gone")]


def test_progress_survives_a_restart(box: Box, packs) -> None:
    scrubbed = Scrubbed(box)
    before = scrubbed.days(12)
    assert 0 < before < PACKS
    again = Scrubbed(box)
    assert before + again.days(14) == PACKS


def test_it_reads_no_faster_than_it_may(box: Box) -> None:
    box.store_sample(sample(1, 1, 40_000_000))
    box.drain()
    scrubbed = Scrubbed(box)
    began_s = box.clock.monotonic_s()
    assert scrubbed.scrub.run_once() == 1
    assert box.clock.monotonic_s() - began_s >= 40_000_000 / READ_BYTES_PER_S


def test_it_waits_while_instances_come_until_it_is_late(box: Box, packs) -> None:
    """A busy node is not disturbed; one that is busy for weeks is scrubbed all the same."""
    scrubbed = Scrubbed(box)
    scrubbed.scrub.run_once()
    checked = 0
    for hour in range(24):
        box.ingest._progress.answered += 1
        box.clock.advance(3600)
        checked += scrubbed.scrub.run_once()
        assert checked == 0, hour
    for _ in range(24 * 30):
        box.ingest._progress.answered += 1
        box.clock.advance(3600)
        checked += scrubbed.scrub.run_once()
    assert checked >= PACKS - 1


def test_a_stop_ends_a_long_read(box: Box) -> None:
    """The pack is looked at again; it was not passed over."""
    box.store_sample(sample(1, 1, 5_000_000))
    box.drain()
    scrubbed = Scrubbed(box)
    scrubbed.stop.set()
    assert scrubbed.scrub.run_once() == 0
    scrubbed.stop.clear()
    assert Scrubbed(box).scrub.run_once() == 1


def test_verify_tells_what_it_finds_too(box: Box, packs, mended: Mended) -> None:
    """By hand or by itself: what is damaged is repaired."""
    flip_dataset(box, packs[2], sample(2, 1))
    evictor: Evictor = box.evictor
    run = Verification(
        box.clock, box.layout, box.index, box.store, evictor, reporter(box.requests, "verify")
    )
    found = run.run(cloud=False, sample=0, advance=lambda _: None)
    assert len(found.findings) == 1
    mended.repair()
    assert mended.repairer.document()["refilled"] == 1
