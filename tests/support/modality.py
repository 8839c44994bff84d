"""A modality that stores and asks for storage commitment, with pynetdicom."""

import contextlib
import queue
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid
from pynetdicom import AE, build_context, build_role, evt

from tests.support.dimse import AE_TITLE, CT, EXPLICIT

PUSH = "1.2.840.10008.1.20.1"
INSTANCE = "1.2.840.10008.1.20.1.1"


@dataclass
class Modality:
    """An SCU that listens for reports on a port of its own, and on its own associations."""

    port: int = 0
    ae_title: str = "MODALITY"
    reports: queue.Queue = field(default_factory=queue.Queue)
    answer: int = 0x0000

    def on_event_report(self, event):
        self.reports.put(
            Report(
                event.event_type,
                event.event_information,
                event.assoc.requestor.ae_title,
                event.assoc.is_requestor,
            )
        )
        return self.answer, None

    def report(self, timeout_s=20) -> "Report":
        return self.reports.get(timeout=timeout_s)

    @contextlib.contextmanager
    def listening(self, *, role_selection=True):
        ae = AE(self.ae_title)
        if role_selection:
            ae.add_supported_context(PUSH, EXPLICIT, scu_role=False, scp_role=True)
        else:
            ae.add_supported_context(PUSH, EXPLICIT)
        handlers = [(evt.EVT_N_EVENT_REPORT, self.on_event_report)]
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = server.socket.getsockname()[1]
        try:
            yield self
        finally:
            server.shutdown()

    @contextlib.contextmanager
    def associated(self, node, called=AE_TITLE, *, role_selection=True):
        ae = AE(self.ae_title)
        association = ae.associate(
            "127.0.0.1", node.port, [build_context(PUSH, EXPLICIT), build_context(CT, EXPLICIT)],
            called,
            ext_neg=[build_role(PUSH, scu_role=True)] if role_selection else [],
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.on_event_report)],
        )  # fmt: skip
        assert association.is_established
        yield association
        if association.is_established:
            association.release()


@dataclass
class Report:
    event_type: int
    dataset: Dataset
    caller: str
    on_own_association: bool

    def failures(self) -> dict[str, int]:
        items = self.dataset.get("FailedSOPSequence") or []
        return {item.ReferencedSOPInstanceUID: item.FailureReason for item in items}

    def successes(self) -> list[str]:
        items = self.dataset.get("ReferencedSOPSequence") or []
        return [item.ReferencedSOPInstanceUID for item in items]


def ask(association, *uids, transaction=None, action=1, instance=INSTANCE, sop_class_uid=CT) -> int:
    """Ask for the commitment of instances; return the status of the answer."""
    request = Dataset()
    request.TransactionUID = transaction or generate_uid()
    items = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class_uid
        item.ReferencedSOPInstanceUID = uid
        items.append(item)
    request.ReferencedSOPSequence = Sequence(items)
    status, _ = association.send_n_action(request, action, PUSH, instance)
    return status.Status
