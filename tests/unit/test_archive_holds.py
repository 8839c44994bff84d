"""Legal holds: in the ledger first, then on every version in the bucket, until they end."""

import pytest

from appliance.archive.holds import FAILED_RETRY_S
from appliance.archive.requests import Request
from appliance.archive.studies import list_rows, show_study
from appliance.foundation.errors import CloudUnavailable
from appliance.index.keeping import is_held
from tests.support.archive_box import Box, restarted, sample
from tests.support.fake_store import no_answer
from tests.support.keeping import holder, received

STUDY = sample(1, 1).study


def ask(box: Box, kind: str) -> None:
    """Have a request carried out to its end."""
    control = box.control()
    box.requests.put(Request(kind, STUDY, by="suzuki", reason="case 7"))
    control.run_once()
    box.write_ledger()
    control.run_once()
    box.clock.advance(1)


def held_in_bucket(box: Box) -> list[tuple[int, bool]]:
    """Return study and hold of every pack, sorted."""
    rows = [box.pack(pack_id) for pack_id in box.pack_ids()]
    return sorted(
        (
            int(row.study_instance_uid.rpartition(".")[2]),
            box.store.head(row.cloud.key, row.cloud.version_id).legal_hold,
        )
        for row in rows
    )


def test_a_hold_is_on_every_version_and_on_new_ones(box: Box) -> None:
    """Old packs, a pack that comes later, and no pack of another study; then the end of it."""
    received(box, sample(1, 1))
    received(box, sample(1, 2))
    ask(box, "hold")
    each = holder(box)
    assert each.run_once() == 2
    received(box, sample(1, 3))
    received(box, sample(2, 1))
    assert each.run_once() == 1
    assert held_in_bucket(box) == [(1, True), (1, True), (1, True), (2, False)]
    ask(box, "release")
    assert each.run_once() == 3
    assert held_in_bucket(box) == [(1, False), (1, False), (1, False), (2, False)]
    assert each.problems() == []


def test_a_hold_is_shown(box: Box) -> None:
    received(box, sample(1, 1))
    assert not list_rows(box.index, "", "", "", 10)[0]["held"]
    ask(box, "hold")
    assert list_rows(box.index, "", "", "", 10)[0]["held"]
    shown = show_study(box.index, box.layout, STUDY)["hold"]
    assert (shown["on"], shown["by"], shown["reason"]) == (True, "suzuki", "case 7")


def test_a_hold_outlives_the_index(box: Box) -> None:
    """The ledger says it; a start asks the bucket once, and changes nothing that is so."""
    received(box, sample(1, 1))
    ask(box, "hold")
    assert holder(box).run_once() == 1
    again = restarted(box)
    each = holder(again)
    again.store.requests.clear()
    assert each.run_once() == 0
    assert each.run_once() == 0
    assert [operation for operation, _ in again.store.requests] == ["head"]
    again.close()


def test_a_store_without_holds_is_told_of_and_not_pressed(box: Box) -> None:
    """The hold stands in the ledger; the bucket is asked again after a while, not every turn."""
    received(box, sample(1, 1))
    ask(box, "hold")
    box.store.knows_legal_hold = False
    each = holder(box)
    each.run_once()
    assert each.problems()[0].condition == "legal_hold"
    asked = len(box.store.requests)
    each.run_once()
    assert len(box.store.requests) == asked
    with box.index.read() as view:
        assert is_held(view, STUDY)
    box.store.knows_legal_hold = True
    box.clock.advance(FAILED_RETRY_S)
    assert each.run_once() == 1
    each.run_once()
    assert each.problems() == []


def test_a_line_that_is_down_is_tried_next_turn(box: Box) -> None:
    received(box, sample(1, 1))
    ask(box, "hold")
    box.store.fail("head", no_answer())
    each = holder(box)
    with pytest.raises(CloudUnavailable):
        each.run_once()
    assert each.run_once() == 1
