"""Storage commitment by a whole node: what is promised is in the bucket when it is promised.

Requesters are pynetdicom's; three peers share one node, one for each rung.
"""

import json
import queue
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from tests.support.bucket import Bucket
from tests.support.dimse import EXPLICIT, small_ct
from tests.support.modality import Modality, ask
from tests.support.node import Node
from tests.support.services import wait_for
from tests.support.shared_node import SharedNode
from tests.support.wire import WireFile, send_raw, with_own_meta

QUIET_S = 1.5
"""For how long a report that must not come is waited for."""
MR = "1.2.840.10008.5.1.4.1.1.4"


class Ward:
    """The node, its bucket, and a requester for each rung."""

    def __init__(self, node: Node, modalities: dict[str, Modality], folder: Path) -> None:
        self.node = node
        self.bucket = Bucket(node)
        self.folder = folder
        self.local = modalities["LOCAL"]
        self.cloud = modalities["CLOUD"]
        self.locked = modalities["LOCKED"]
        self.elsewhere = modalities["ELSEWHERE"]

    def store(self) -> WireFile:
        """Store a new instance of a new study."""
        dataset, raw = small_ct(StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid())
        path = self.folder / f"{dataset.SOPInstanceUID}.dcm"
        file = with_own_meta(path, raw, dataset, EXPLICIT)
        assert send_raw(self.node, [file]) == [0x0000]
        return file

    def transactions(self, ae_title: str) -> list[dict]:
        found = []
        for path in (self.node.data / "state" / "commitment").glob("*.json"):
            item = json.loads(path.read_text())
            if item["calling_ae"] == ae_title:
                found.append(item)
        return found


@pytest.fixture(scope="module")
def ward(shared: SharedNode, tmp_path_factory: pytest.TempPathFactory) -> Ward:
    """A running node that three modalities may ask, and one that is always called."""
    names = ("LOCAL", "CLOUD", "LOCKED", "ELSEWHERE")
    modalities = {name: Modality(shared.ports[name], name) for name in names}
    return Ward(shared.node, modalities, tmp_path_factory.mktemp("commitment"))


def test_locked_is_promised_once_ledger_and_lock_are_read_back(ward: Ward) -> None:
    """On the same association; at the moment of the report the bucket already has both."""
    file = ward.store()
    with ward.locked.associated(ward.node) as association:
        transaction = generate_uid()
        assert ask(association, file.sop_instance, transaction=transaction) == 0x0000
        report = ward.locked.report()
        record = ward.bucket.pack_of(file.sop_instance)
    assert report.on_own_association
    assert report.event_type == 1
    assert report.dataset.TransactionUID == transaction
    assert report.successes() == [file.sop_instance]
    assert record is not None
    assert ward.bucket.is_locked(record)
    (row,) = ward.node.json("study", "show", file.study)["instances"]
    assert row["committed_at"]
    assert row["locked_until"]


def test_cloud_is_promised_once_the_ledger_names_it(ward: Ward) -> None:
    """By a requester that selects no role; the report comes on its association all the same."""
    file = ward.store()
    with ward.cloud.associated(ward.node, role_selection=False) as association:
        assert ask(association, file.sop_instance) == 0x0000
        report = ward.cloud.report()
        assert ward.bucket.pack_of(file.sop_instance) is not None
    assert report.on_own_association
    assert report.successes() == [file.sop_instance]


def test_report_goes_to_a_new_association_when_the_requester_released(ward: Ward) -> None:
    """It asked, and was gone before anything was uploaded."""
    file = ward.store()
    with ward.locked.listening():
        with ward.locked.associated(ward.node) as association:
            assert ask(association, file.sop_instance) == 0x0000
        report = ward.locked.report()
    assert not report.on_own_association
    assert report.successes() == [file.sop_instance]


def test_report_goes_to_a_new_association_when_the_requester_aborted(ward: Ward) -> None:
    """The line broke; whoever listens on the configured port hears it, roles or not."""
    file = ward.store()
    with ward.cloud.listening(role_selection=False):
        with ward.cloud.associated(ward.node) as association:
            assert ask(association, file.sop_instance) == 0x0000
            association.abort()
        report = ward.cloud.report()
    assert not report.on_own_association
    assert report.successes() == [file.sop_instance]


def test_report_goes_to_a_new_association_where_the_peer_wants_that(ward: Ward) -> None:
    """Though the requester's own is open."""
    file = ward.store()
    with (
        ward.elsewhere.listening(),
        ward.elsewhere.associated(ward.node, role_selection=False) as association,
    ):
        assert ask(association, file.sop_instance) == 0x0000
        report = ward.elsewhere.report()
    assert not report.on_own_association
    assert report.successes() == [file.sop_instance]


def test_wrong_class_and_rejected_instances_are_reported_as_failed(ward: Ward) -> None:
    """Event Type 2 with a reason for each; what is good is in it as committed."""
    good, rejected, wrong = ward.store(), ward.store(), ward.store()
    ward.node.azekura("study", "reject", rejected.study, "--reason", "113001")
    with ward.cloud.associated(ward.node) as association:
        assert ask(association, wrong.sop_instance, sop_class_uid=MR) == 0x0000
        report = ward.cloud.report()
        assert (report.event_type, report.successes()) == (2, [])
        assert report.failures() == {wrong.sop_instance: 0x0119}
        assert ask(association, good.sop_instance, rejected.sop_instance) == 0x0000
        report = ward.cloud.report()
    assert report.event_type == 2
    assert report.successes() == [good.sop_instance]
    assert report.failures() == {rejected.sop_instance: 0x0112}


def test_local_does_not_wait_for_the_cloud_and_locked_does(ward: Ward) -> None:
    """With the uplink stopped; when it runs again the packs go first and the report follows."""
    node = ward.node
    node.stop("uplink")
    first, second = ward.store(), ward.store()
    with ward.local.associated(node) as association:
        assert ask(association, first.sop_instance) == 0x0000
        assert ward.local.report().successes() == [first.sop_instance]
    with ward.locked.listening():
        with ward.locked.associated(node) as association:
            assert ask(association, second.sop_instance) == 0x0000
            with pytest.raises(queue.Empty):
                ward.locked.report(QUIET_S)
        requests = [json.loads(path.read_text()) for path in _requests(node)]
        assert [each["study_instance_uid"] for each in requests] == [second.study]
        assert requests[0]["kind"] == "hurry"
        node.start("uplink")
        report = ward.locked.report()
    assert report.event_type == 1
    assert not report.on_own_association
    assert report.successes() == [second.sop_instance]
    record = ward.bucket.pack_of(second.sop_instance)
    assert record is not None
    assert ward.bucket.is_locked(record)
    wait_for(lambda: not _requests(node))


def _requests(node: Node) -> list[Path]:
    return [
        path
        for path in (node.data / "state" / "requests").glob("*.json")
        if not path.name.endswith(".answer.json")
    ]


def test_report_outlives_the_receiver(ward: Ward) -> None:
    """Nobody listened, the receiver was killed: its next life delivers, and delivers once."""
    node = ward.node
    file = ward.store()
    with ward.elsewhere.associated(node) as association:
        transaction = generate_uid()
        assert ask(association, file.sop_instance, transaction=transaction) == 0x0000

    def tried() -> bool:
        return any(
            item["transaction_uid"] == transaction and item["attempts_count"]
            for item in ward.transactions("ELSEWHERE")
        )

    wait_for(tried)
    node.kill("receive")
    node.start("receive")
    with ward.elsewhere.listening():
        # whoever asks again shows that it lives, and need not wait for the next attempt's time
        again = ward.store()
        with ward.elsewhere.associated(node) as association:
            assert ask(association, again.sop_instance) == 0x0000
            reports = [ward.elsewhere.report(), ward.elsewhere.report()]
        with pytest.raises(queue.Empty):
            ward.elsewhere.report(QUIET_S)
    found = {report.dataset.TransactionUID: report.successes() for report in reports}
    assert found.pop(transaction) == [file.sop_instance]
    assert list(found.values()) == [[again.sop_instance]]


def test_request_outlives_the_receiver(ward: Ward) -> None:
    """Killed after its answer and before the rung; the report comes when that is reached."""
    node = ward.node
    node.stop("uplink")
    file = ward.store()
    with ward.locked.associated(node) as association:
        assert ask(association, file.sop_instance) == 0x0000
    node.kill("receive")
    with ward.locked.listening():
        node.start("receive", "uplink")
        report = ward.locked.report()
    assert report.successes() == [file.sop_instance]
