"""Requests: carried out once, answered when durable, found again after a crash."""

import os
import threading

import pytest

from appliance.archive.control import Control, record_id
from appliance.archive.records import Rejected, Restored
from appliance.archive.requests import ANSWER_KEPT_S, Answer, Request, RequestBox
from appliance.foundation.errors import Busy, StorageFailed
from appliance.foundation.files import FileSystem
from tests.support.archive_box import Box, entries, restarted, sample
from tests.support.fake_store import no_answer
from tests.support.pack_samples import broken_disk, full_disk

STUDY = sample(1, 1).study


@pytest.fixture
def control(box: Box) -> Control:
    for number in range(2):
        box.store_sample(sample(1, number))
    box.drain()
    return box.control()


def _ask(box: Box, kind: str, **more) -> str:
    return box.requests.put(Request(kind=kind, study_instance_uid=STUDY, by="test", **more))


def _answer(box: Box, request_id: str) -> Answer | None:
    path = os.path.join(box.layout.requests, f"{request_id}.answer.json")
    return box.requests.wait(request_id, 1.0) if os.path.exists(path) else None


def _until_answered(box: Box, control: Control, request_id: str) -> Answer:
    for _ in range(2000):
        control.run_once()
        answer = _answer(box, request_id)
        if answer is not None:
            return answer
        threading.Event().wait(0.005)
    raise AssertionError("no answer")


def _served(box: Box) -> set[str]:
    return {each.sop_instance_uid for each in box.served()}


def test_evict_and_recall(box: Box, control: Control) -> None:
    request_id = _ask(box, "evict")
    assert control.run_once() == 1
    assert _answer(box, request_id).done
    assert box.sealed_ids() == []
    request_id = _ask(box, "recall")
    assert _until_answered(box, control, request_id).sentence == "1 packs recalled"
    assert len(box.sealed_ids()) == 1
    assert box.pack(box.pack_ids()[0]).state == "cached"


def test_a_recall_holds_up_nobody(box: Box, control: Control, monkeypatch) -> None:
    """It may take an hour; the other requests are answered meanwhile."""
    box.evictor.evict_study(STUDY)
    gate = threading.Event()
    monkeypatch.setattr(box.recaller, "recall", lambda *_: gate.wait(30))
    slow, quick = _ask(box, "recall"), _ask(box, "pin")
    control.run_once()
    assert _answer(box, quick).done
    assert _answer(box, slow) is None
    gate.set()
    assert _until_answered(box, control, slow).done


def test_a_failed_recall_is_told(box: Box, control: Control) -> None:
    box.evictor.evict_study(STUDY)
    box.store.offline = True
    answer = _until_answered(box, control, _ask(box, "recall"))
    assert not answer.done
    assert "offline" in answer.sentence


@pytest.mark.parametrize("kind", ["evict", "recall", "reject"])
def test_an_unknown_study_is_said_so(box: Box, control: Control, kind: str) -> None:
    request_id = box.requests.put(Request(kind=kind, study_instance_uid="9.9"))
    control.run_once()
    answer = _answer(box, request_id)
    assert not answer.done
    assert "no such study" in answer.sentence


def test_an_unknown_kind_is_answered(box: Box, control: Control) -> None:
    request_id = _ask(box, "dance")
    control.run_once()
    assert not _answer(box, request_id).done


def test_a_rejection_holds_at_once_and_is_answered_from_the_ledger(
    box: Box, control: Control
) -> None:
    """Hidden as soon as it was asked; "done" is said when the bucket has the record."""
    request_id = _ask(box, "reject")
    for _ in range(3):
        control.run_once()
    assert _served(box) == set()
    assert _answer(box, request_id) is None
    box.write_ledger()
    control.run_once()
    assert _answer(box, request_id).done
    found = [r for e in entries(box.store, box.recovery) for r in e.records]
    (record,) = [r for r in found if isinstance(r, Rejected)]
    assert record.record_id == record_id(request_id)
    request_id = _ask(box, "restore")
    box.clock.advance(1)
    control.run_once()
    box.write_ledger()
    control.run_once()
    assert _answer(box, request_id).done
    assert len(_served(box)) == 2
    found = [r for e in entries(box.store, box.recovery) for r in e.records]
    assert isinstance(found[-1], Restored)


def test_a_rejection_outlives_a_crash_in_front_of_the_ledger(box: Box, control: Control) -> None:
    request_id = _ask(box, "reject")
    control.run_once()
    again = restarted(box)
    control = again.control()
    control.run_once()
    again.write_ledger()
    control.run_once()
    assert _answer(again, request_id).done
    assert _served(again) == set()
    again.close()


def test_a_full_disk_keeps_the_answer_for_later(box: Box, control: Control) -> None:
    """What was done must be told, if not now then when there is room."""
    request_id = _ask(box, "reject")
    control.run_once()
    box.write_ledger()
    box.requests._files = _Full()
    with pytest.raises(Exception, match="write"):
        control.run_once()
    box.requests._files = FileSystem()
    control.run_once()
    assert _answer(box, request_id).done


class _Full(FileSystem):
    def write_atomic(self, path, content, mode=0o660):
        raise full_disk("write")


def test_a_failed_disk_is_no_answer(box: Box, control: Control, monkeypatch) -> None:
    """It ends the daemon; the request is there for the next start."""

    def broken(_study):
        raise broken_disk("unlink")

    monkeypatch.setattr(box.evictor, "evict_study", broken)
    request_id = _ask(box, "evict")
    with pytest.raises(StorageFailed):
        control.run_once()
    assert [each for each, _ in box.requests.pending()] == [request_id]


def test_pins_outlive_everything(box: Box, control: Control) -> None:
    _ask(box, "pin")
    control.run_once()
    assert box.pins.pinned(STUDY)
    _ask(box, "unpin")
    control.run_once()
    assert not box.pins.pinned(STUDY)


def test_hurry_names_what_is_pending(box: Box, control: Control) -> None:
    box.store_sample(sample(1, 7))
    box.close_packs()
    box.indexer().catch_up()
    box.store.fail("put", no_answer())
    request_id = _ask(box, "hurry")
    control.run_once()
    assert _answer(box, request_id).sentence == "1 packs hurried"
    assert len(box.uplink._urgent) == 1


class TestRequestBox:
    """The directory of requests."""

    def test_a_request_is_durable_and_kept_until_answered(self, box: Box) -> None:
        request_id = _ask(box, "evict")
        for _ in range(2):
            again = RequestBox(box.files, box.layout.requests)
            ((found, request),) = again.pending()
            assert (found, request.kind) == (request_id, "evict")
        box.requests.answer(request_id, Answer(done=True, sentence="x"))
        assert box.requests.pending() == []

    def test_nobody_waits_for_ever(self, box: Box) -> None:
        with pytest.raises(Busy):
            box.requests.wait(_ask(box, "evict"), 0.05)
        assert len(box.requests.pending()) == 1

    def test_what_is_asked_under_a_name_is_asked_once(self, box: Box) -> None:
        """An index made anew meets the old rejection note again: it must not undo a restore."""
        request = Request(kind="reject", study_instance_uid=STUDY)
        name = box.requests.put(request, "note-1")
        assert box.requests.put(request, "note-1") == name
        assert len(box.requests.pending()) == 1
        box.requests.answer(name, Answer(done=True, sentence="x"))
        box.requests.sweep(4e9)
        box.requests.put(request, "note-1")
        assert box.requests.pending() == []

    def test_answers_that_nobody_takes_go(self, box: Box) -> None:
        request_id = _ask(box, "evict")
        box.requests.answer(request_id, Answer(done=True, sentence="x"))
        path = os.path.join(box.layout.requests, f"{request_id}.answer.json")
        now_s = os.path.getmtime(path)
        box.requests.sweep(now_s + ANSWER_KEPT_S - 1)
        assert os.path.exists(path)
        box.requests.sweep(now_s + ANSWER_KEPT_S + 1)
        assert not os.path.exists(path)

    def test_an_unreadable_request_stops_nobody(self, box: Box) -> None:
        with open(os.path.join(box.layout.requests, "broken.json"), "w") as file:
            file.write("{")
        request_id = _ask(box, "evict")
        assert [each for each, _ in box.requests.pending()] == [request_id]
