"""A sender that remembers what was answered Success, and a reader that fetches it back raw.

Works on the project's own associations: what it sends is the sample's bytes, what it fetches is
hashed as it came.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from appliance.dicom import status
from appliance.dimse.association import Association
from appliance.dimse.commands import (
    AFFECTED_SOP_INSTANCE_UID,
    C_STORE_RQ,
    ERROR_COMMENT,
    Command,
    encode_store_request,
    encode_store_success,
)
from appliance.dimse.contexts import Proposal
from appliance.dimse.requestor import request_association
from appliance.foundation.errors import AssociationLost, PeerError
from tests.bench import client
from tests.support.archive_box import Sample
from tests.support.pack_samples import CT_STORAGE, EXPLICIT

ANSWER_S = 60.0
AGAIN_S = 0.05


def associate(port: int) -> Association:
    """Associate with a node for C-STORE and C-GET of CT images."""
    return request_association(
        "127.0.0.1", port, calling_ae="CTSCAN", called_ae="AZEKURA",
        proposals=[
            Proposal(CT_STORAGE, (EXPLICIT,), scu=True, scp=True),
            Proposal(client.uid.STUDY_ROOT_GET, (EXPLICIT,)),
        ],
    )  # fmt: skip


def store(association: Association, each: Sample) -> int:
    """Send one instance and return the status."""
    context = association.find_context(CT_STORAGE)
    assert context is not None
    message_id = association.next_message_id()
    command = encode_store_request(message_id, CT_STORAGE, each.sop_instance_uid)
    answer = association.exchange(
        context.context_id, command, message_id, each.dataset, timeout_s=ANSWER_S
    )
    return answer.status


class Sender:
    """Sends samples in order, each until it is answered Success, over as many associations as it
    takes; `pause_s` gives how long it rests before each. `answered`, guarded by `_guard`, has those
    that were."""

    def __init__(
        self, port: int, samples: Sequence[Sample], pause_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._pause_s = pause_s
        self._port = port
        self._samples = samples
        self._guard = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"sender-{port}")
        self._stop = threading.Event()
        self.answered: list[Sample] = []
        self.associations_count = 0
        self.error: Exception | None = None

    def start(self) -> "Sender":
        self._thread.start()
        return self

    def stop(self) -> None:
        """End it, whatever is left."""
        self._stop.set()
        self._thread.join(ANSWER_S)

    def finish(self, timeout_s: float) -> None:
        """Wait until everything was answered Success."""
        self.wait_for(len(self._samples), timeout_s)
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()

    def wait_for(self, count: int, timeout_s: float = 120.0) -> None:
        """Wait until so many instances were answered Success."""
        with self._guard:
            reached = self._guard.wait_for(
                lambda: len(self.answered) >= count or self.error is not None, timeout_s
            )
        assert self.error is None, self.error
        assert reached, f"{len(self.answered)} of {count} answered"

    def _run(self) -> None:
        try:
            left = list(self._samples)
            while left and not self._stop.is_set():
                self._one_association(left)
        except Exception as error:  # noqa: BLE001 - told by wait_for
            self.error = error
            with self._guard:
                self._guard.notify_all()

    def _one_association(self, left: list[Sample]) -> None:
        try:
            association = associate(self._port)
        except PeerError:
            time.sleep(AGAIN_S)
            return
        self.associations_count += 1
        try:
            while left and not self._stop.is_set():
                time.sleep(self._pause_s())
                code = store(association, left[0])
                if code != status.SUCCESS:
                    time.sleep(AGAIN_S)
                    continue
                with self._guard:
                    self.answered.append(left.pop(0))
                    self._guard.notify_all()
            association.release()
        except AssociationLost:
            association.abort()


class Fetched(NamedTuple):
    """What a C-GET brought: the digest of each dataset by SOP Instance UID, and how it ended."""

    digests: dict[str, str]
    status: int
    comment: str
    took_s: float


def fetch(port: int, study: str, during: Callable[[], None] | None = None) -> Fetched:
    """Fetch a study by C-GET; hash what comes as it came."""
    association = associate(port)
    started_s = time.monotonic()
    try:
        digests, last = _receive(association, study, during)
        took_s = time.monotonic() - started_s
        association.release()
    finally:
        association.close()
    comment = bytes(last.raw.get(ERROR_COMMENT, b"")).decode("ascii").strip()
    return Fetched(digests, last.status, comment, took_s)


def _receive(
    association: Association, study: str, during: Callable[[], None] | None
) -> tuple[dict[str, str], Command]:
    client.send_get(association, study)
    digests: dict[str, str] = {}
    while True:
        command = association.read_command(ANSWER_S)
        assert command is not None
        if command.field == C_STORE_RQ:
            _take(association, command, digests)
            if during is not None:
                during()
        elif command.status not in client.PENDING:
            return digests, command


def _take(association: Association, command: Command, digests: dict[str, str]) -> None:
    digest = hashlib.sha256()
    for part in association.read_dataset_parts(1 << 20):
        digest.update(part)
    uid = bytes(command.raw[AFFECTED_SOP_INSTANCE_UID]).decode("ascii").rstrip("\0 ")
    assert uid not in digests, "sent twice"
    digests[uid] = digest.hexdigest()
    association.send_response(command.context_id, encode_store_success(command))


def fetch_all(port: int, samples: Iterable[Sample]) -> dict[str, str]:
    """Fetch every study of the samples; return all digests by SOP Instance UID."""
    found: dict[str, str] = {}
    for study in dict.fromkeys(each.study for each in samples):
        fetched = fetch(port, study)
        assert fetched.status == status.SUCCESS, (hex(fetched.status), fetched.comment)
        found |= fetched.digests
    return found


def digests_of(samples: Iterable[Sample]) -> dict[str, str]:
    """Return what `fetch_all` should bring."""
    return {each.sop_instance_uid: each.sha256.hex() for each in samples}
