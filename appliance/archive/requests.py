"""Requests to the uplink as durable files, and their answers.

A request is `state/requests/<id>.json`; its answer appears as `<id>.answer.json` and is removed by
whoever asked. A request survives both processes; carrying one out twice does no harm. A request
whose id its asker chose is asked once and for all: its answer stays, so that the same asked again,
by an index that is made anew, does not undo what came after it.
"""

import contextlib
import os
import time
from typing import Any

import msgspec

from appliance.archive.layout import new_pack_id
from appliance.foundation.errors import AzekuraError, Busy
from appliance.foundation.files import FileSystem

POLL_S = 0.05
ANSWER_KEPT_S = 3600.0
_KEPT = "once-"


class Request(msgspec.Struct, frozen=True):
    """What is asked: `evict`, `recall`, `reject`, `restore`, `hold`, … of a study or an instance.

    Or `repair` of a pack, which somebody found damaged: `reason` says how. `details`: what a kind
    needs besides, like the result of a `drill`, or the hash of the plan that `erased` settles.
    """

    kind: str
    study_instance_uid: str = ""
    sop_instance_uids: tuple[str, ...] = ()
    by: str = ""
    reason: str = ""
    note_uid: str = ""
    details: dict[str, Any] = {}
    pack_id: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What became of it: a sentence, or the error's parts."""

    done: bool
    sentence: str
    hint: str = ""
    details: dict[str, Any] = {}


class RequestBox:
    """The directory of requests. Any process puts; the uplink takes."""

    def __init__(self, files: FileSystem, directory: str) -> None:
        self._files = files
        self._directory = directory

    def put(self, request: Request, request_id: str | None = None) -> str:
        """Leave a request, durable; return its id. The same id again, ever, changes nothing."""
        name = f"{_KEPT}{request_id}" if request_id else new_pack_id()
        path = os.path.join(self._directory, f"{name}.json")
        if not os.path.exists(path) and not os.path.exists(self._answer_path(name)):
            self._files.write_atomic(path, msgspec.json.encode(request))
        return name

    def put_unless_waiting(self, request: Request, name: str) -> None:
        """Leave a request under a name of the asker's; nothing while one of that name waits."""
        path = os.path.join(self._directory, f"{name}.json")
        if not os.path.exists(path):
            self._files.write_atomic(path, msgspec.json.encode(request))

    def pending(self) -> list[tuple[str, Request]]:
        """Return what waits, oldest first; unreadable files are skipped."""
        found = []
        for name in sorted(os.listdir(self._directory)):
            if not name.endswith(".json") or name.endswith(".answer.json"):
                continue
            path = os.path.join(self._directory, name)
            try:
                with open(path, "rb") as file:
                    found.append((name[:-5], msgspec.json.decode(file.read(), type=Request)))
            except (FileNotFoundError, msgspec.DecodeError):
                continue
        return found

    def answer(self, request_id: str, answer: Answer) -> None:
        """Write the answer, then remove the request."""
        self._files.write_atomic(self._answer_path(request_id), msgspec.json.encode(answer))
        self._files.unlink(os.path.join(self._directory, f"{request_id}.json"))

    def wait(self, request_id: str, timeout_s: float) -> Answer:
        """Wait for the answer and take it; Busy when none comes in time."""
        path = self._answer_path(request_id)
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            try:
                with open(path, "rb") as file:
                    answer = msgspec.json.decode(file.read(), type=Answer)
            except FileNotFoundError:
                time.sleep(POLL_S)
                continue
            self._files.unlink(path)
            return answer
        raise Busy(
            "wait for the uplink", request_id, f"no answer in {timeout_s:.0f} s",
            "The request stays and is carried out when azekura uplink runs",
        )  # fmt: skip

    def sweep(self, now_s: float) -> None:
        """Remove answers that nobody took."""
        for name in os.listdir(self._directory):
            path = os.path.join(self._directory, name)
            if not name.endswith(".answer.json") or name.startswith(_KEPT):
                continue
            with contextlib.suppress(FileNotFoundError):
                if now_s - os.path.getmtime(path) > ANSWER_KEPT_S:
                    self._files.unlink(path)

    def _answer_path(self, request_id: str) -> str:
        return os.path.join(self._directory, f"{request_id}.answer.json")


def failed(error: AzekuraError) -> Answer:
    """Return the answer that an error makes."""
    return Answer(done=False, sentence=str(error), hint=error.hint)
