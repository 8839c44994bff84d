"""Carrying out requests: evict, recall, reject, restore, hold, pin. Part of the uplink.

Each request is answered once, after what it asked for is durable; a request found again after a
crash is carried out again, which changes nothing that was already done. A failed disk is no answer:
it ends the daemon.
"""

import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from appliance.archive.applying import apply_record
from appliance.archive.disposal import Disposal
from appliance.archive.drill_book import DrillBook
from appliance.archive.evict import Evictor
from appliance.archive.pins import Pins
from appliance.archive.recall import Recaller
from appliance.archive.records import Drilled, Held, Record, Rejected, Restored
from appliance.archive.requests import Answer, Request, RequestBox, failed
from appliance.archive.studies import study_packs
from appliance.archive.uplink import Uplink
from appliance.foundation import log
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.errors import AzekuraError, NotFound, StorageFailed, UsageError
from appliance.index.index import Index
from appliance.index.records import PackRow

MANUAL_CODE = "manual"
RECALLS_MAX = 2

_log = log.get("control")


class Control:
    """Answers the request box; one thread.

    `_under_way` holds the requests whose answer comes later: from the ledger's thread, or from one
    that recalls. Those leave it in `_finished`, and this thread writes it.
    """

    def __init__(
        self,
        clock: Clock,
        index: Index,
        requests: RequestBox,
        uplink: Uplink | None,
        evictor: Evictor,
        recaller: Recaller,
        pins: Pins,
        node: str,
        drills: DrillBook | None = None,
        repair: Callable[[str, str, str], None] | None = None,
        disposal: Disposal | None = None,
    ) -> None:
        """Take over.

        `uplink`, `disposal`: None on a node that writes nothing. `drills`: where held ones are
        noted. `repair` is called with a pack id, how it is damaged and who found it.
        """
        self._drills = drills
        self._repair = repair
        self._disposal = disposal
        self._clock = clock
        self._index = index
        self._requests = requests
        self._uplink = uplink
        self._evictor = evictor
        self._recaller = recaller
        self._pins = pins
        self._node = node
        self._under_way: set[str] = set()
        self._finished: deque[tuple[str, str, Answer]] = deque()
        self._recalls = ThreadPoolExecutor(RECALLS_MAX, thread_name_prefix="recall-request")

    def close(self) -> None:
        """Take no further recall; what is not answered is found again at the next start."""
        self._recalls.shutdown(wait=False, cancel_futures=True)

    def run_once(self) -> int:
        """Carry out what waits; return how many requests were answered."""
        count = 0
        while self._finished:
            self._answer(*self._finished[0])
            self._finished.popleft()
            count += 1
        for request_id, request in self._requests.pending():
            if request_id in self._under_way:
                continue
            try:
                answer = self._taken_for_repair(request) or self._carry_out(request_id, request)
            except StorageFailed:
                raise
            except AzekuraError as error:
                answer = failed(error)
            if answer is not None:
                self._answer(request_id, request.kind, answer)
                count += 1
        self._requests.sweep(self._clock.now().timestamp())
        return count

    def _answer(self, request_id: str, kind: str, answer: Answer) -> None:
        self._requests.answer(request_id, answer)
        self._under_way.discard(request_id)
        _log.info("request_answered", kind=kind, done=answer.done)

    def _taken_for_repair(self, request: Request) -> Answer | None:
        if request.kind != "repair" or self._repair is None:
            return None
        self._repair(request.pack_id, request.reason, request.by)
        return Answer(done=True, sentence="the pack is looked at")

    def _carry_out(self, request_id: str, request: Request) -> Answer | None:
        """Return the answer; None when it comes later."""
        match request.kind:
            case "recall":
                self._recall(request_id, request)
            case "reject" | "restore":
                self._write(request_id, request, *self._visibility(request_id, request))
            case "hold" | "release":
                self._write(request_id, request, *self._hold(request_id, request))
            case "erased":
                return self._settle(request)
            case "drill":
                self._drilled(request_id, request)
            case _:
                return self._at_once(request)
        return None

    def _at_once(self, request: Request) -> Answer:
        match request.kind:
            case "evict":
                return self._evict(request)
            case "pin" | "unpin":
                return self._pin(request)
            case "hurry":
                return self._hurry(request)
        raise UsageError("carry out a request", request.kind, "nothing of that kind is known")

    def _pin(self, request: Request) -> Answer:
        if request.kind == "pin":
            self._pins.pin(request.study_instance_uid)
            return Answer(done=True, sentence="the study stays cached")
        self._pins.unpin(request.study_instance_uid)
        return Answer(done=True, sentence="the study may be evicted again")

    def _evict(self, request: Request) -> Answer:
        evicted, pending = self._evictor.evict_study(request.study_instance_uid)
        sentence = f"{evicted} packs evicted"
        if pending:
            return Answer(
                done=False,
                sentence=f"{sentence}, {pending} kept: they are pending",
                hint="What is pending has its only copy here; azekura drain waits for it",
            )
        return Answer(done=True, sentence=sentence)

    def _recall(self, request_id: str, request: Request) -> None:
        with self._index.read() as view:
            rows = study_packs(view, request.study_instance_uid)
        if not rows:
            raise NotFound("recall", "the study", "no such study here", "azekura study list")
        away = [row for row in rows if row.cloud is not None and not row.local]
        self._under_way.add(request_id)
        self._recalls.submit(self._recall_packs, request_id, away)

    def _recall_packs(self, request_id: str, away: list[PackRow]) -> None:
        """Bring packs back; on a thread of its own, so that other requests go on."""
        try:
            for row in away:
                assert row.cloud is not None
                self._recaller.recall(row.pack_id, row.cloud)
            answer = Answer(done=True, sentence=f"{len(away)} packs recalled")
        except AzekuraError as error:
            answer = failed(error)
        except Exception as error:  # noqa: BLE001 - the boundary of a thread
            _log.error("recall_failed", error=log.where(error))
            answer = Answer(done=False, sentence="the recall failed", hint="See the uplink's log")
        self._finished.append((request_id, "recall", answer))

    def _write(self, request_id: str, request: Request, record: Record, sentence: str) -> None:
        """Let the record hold in the index now, and answer when the ledger has it too."""
        if self._uplink is None:
            raise UsageError(
                request.kind, "the study", "this standby writes no ledger",
                "Ask a node that does: this one follows it",
            )  # fmt: skip
        with self._index.write() as txn:
            apply_record(txn, record, self._node, 0, 0)
        self._under_way.add(request_id)
        answer = Answer(done=True, sentence=sentence)
        self._uplink.record(
            record, lambda: self._finished.append((request_id, request.kind, answer))
        )

    def _visibility(self, request_id: str, request: Request) -> tuple[Rejected | Restored, str]:
        """Return the record that hides or restores, and what to answer."""
        instances = self._instances(request)
        said = isoformat(self._clock.now())
        study = request.study_instance_uid
        if request.kind == "reject":
            rejected = Rejected(
                record_id=record_id(request_id),
                study_instance_uid=study,
                sop_instance_uids=instances,
                code=request.reason or MANUAL_CODE,
                by=request.by,
                at=said,
                note_uid=request.note_uid,
            )
            return rejected, f"{len(instances)} instances rejected"
        restored = Restored(
            record_id=record_id(request_id),
            study_instance_uid=study,
            sop_instance_uids=instances,
            by=request.by,
            at=said,
        )
        return restored, f"{len(instances)} instances restored"

    def _hold(self, request_id: str, request: Request) -> tuple[Held, str]:
        """Return the record that begins or ends a legal hold, and what to answer."""
        with self._index.read() as view:
            known = study_packs(view, request.study_instance_uid)
        if not known:
            raise NotFound("hold", "the study", "no such study here", "azekura study list")
        on = request.kind == "hold"
        record = Held(
            record_id=record_id(request_id),
            study_instance_uid=request.study_instance_uid,
            on=on,
            by=request.by,
            reason=request.reason,
            at=isoformat(self._clock.now()),
        )
        return record, "the study is held" if on else "the study is no longer held"

    def _settle(self, request: Request) -> Answer | None:
        """Settle an erasure; None, and again next turn, while the ledger is being written."""
        if self._disposal is None:
            raise UsageError("settle an erasure", "", "this standby writes no ledger")
        path = self._disposal.settle(str(request.details.get("plan", "")))
        if path is None:
            return None
        return Answer(done=True, sentence="the erasure is settled", details={"certificate": path})

    def _instances(self, request: Request) -> list[str]:
        if request.sop_instance_uids:
            return list(request.sop_instance_uids)
        with self._index.read() as view:
            found = [each.sop_instance_uid for each in view.instances(request.study_instance_uid)]
        if not found:
            raise NotFound("reject", "the study", "no such study here", "azekura study list")
        return found

    def _drilled(self, request_id: str, request: Request) -> None:
        """Note a drill that was held, and answer when the ledger has it."""
        try:
            record = msgspec.convert(request.details, Drilled)
        except msgspec.ValidationError as cause:
            raise UsageError("note a drill", "", str(cause)) from cause
        if self._drills is not None:
            self._drills.note(record)
        if self._uplink is None:
            raise UsageError(
                "write a drill down", "", "this standby writes no ledger",
                "It is noted on this node alone",
            )  # fmt: skip
        self._under_way.add(request_id)
        answer = Answer(done=True, sentence="the drill is in the ledger")
        self._uplink.record(
            record, lambda: self._finished.append((request_id, request.kind, answer))
        )

    def _hurry(self, request: Request) -> Answer:
        with self._index.read() as view:
            rows = study_packs(view, request.study_instance_uid)
            pending = {row.pack_id for row in rows if row.cloud is None}
        if self._uplink is not None:
            self._uplink.hurry(pending)
        return Answer(done=True, sentence=f"{len(pending)} packs hurried")


def record_id(request_id: str) -> str:
    """Return the id under which a request's record is known for ever."""
    return hashlib.sha256(request_id.encode()).hexdigest()[:32]
