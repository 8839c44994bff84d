"""Kills a process at every step of an instance's way, restarts it, and looks what is left.

Run as a program: `python -m tests.support.crash_runner FOLDER kill|power [STRIDE [FIRST]]`. It
stays single-threaded, so that it may fork: for each N a child goes through `scenario` and ends
itself by SIGKILL at its N-th step; a second child restarts over the same folder and checks the
promises. With `power` the child first makes the folder what a power cut may leave of it. The object
store lives in this process, as a bucket outlives a node. One JSON document goes to standard output.

A step is one of `dying_files`; a commit of the index, in front and behind; a request to the store,
in front and behind.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from appliance.archive.checkpoint import CheckpointReader
from appliance.archive.checkpoint_name import CheckpointName
from appliance.archive.indexer import mark_found
from appliance.archive.layout import packs_in
from appliance.archive.recall import clear_abandoned
from appliance.archive.requests import Request
from appliance.foundation import log
from appliance.seal.signing import SigningKey
from tests.support.archive_box import (
    EXPLICIT,
    SENDER,
    Box,
    Sample,
    create_keys,
    packs_named,
    sample,
)
from tests.support.dying_files import DyingRenames, PowerFiles, Steps, die_around_commits
from tests.support.fake_store import FakeStore
from tests.support.manual_clock import ManualClock
from tests.support.pack_samples import CT_STORAGE

STEPS_MAX = 2000
CHECKPOINTS = (2,)  # entries a range
SAMPLES = [sample(number % 2, number) for number in range(5)] + [sample(2, 9, 30_000)]
PROMISE, RESULT = "promise", "result"


class RemoteStore:
    """The store of the parent process, seen from a child."""

    def __init__(self, line: Connection, steps: Steps | None = None) -> None:
        self._line = line
        self._steps = steps
        self._guard = threading.Lock()

    def _ask(self, method: str, *arguments, **named):
        with self._guard:
            if self._steps is not None:
                self._steps.step()
            self._line.send((method, arguments, named))
            failed, answer = self._line.recv()
            if self._steps is not None:
                self._steps.step()
        if failed:
            raise answer
        return answer

    def put(self, key, body, *, checkpoint=None, **named):
        return self._ask("put", key, body, **named)

    def get_into(self, buffer, key, version_id=None, start=0, lane=0):
        buffer[:] = self._ask("get", key, version_id, start, start + len(buffer))

    def __getattr__(self, name: str):
        return lambda *arguments, **named: self._ask(name, *arguments, **named)


def scenario(box: Box, promise: Callable[[Sample], None]) -> None:
    """Take six instances of three studies all the way: stored, verified, evicted, back again."""
    for number, each in enumerate(SAMPLES[:5]):
        box.store_sample(each)
        promise(each)
        if number == 2:
            box.indexer().run_once()
    last = SAMPLES[5]
    stream = box.ingest.open_stream(SENDER, CT_STORAGE, last.sop_instance_uid, EXPLICIT)
    for start in range(0, len(last.dataset), 20_000):
        stream.write(memoryview(last.dataset)[start : start + 20_000])
    stream.finish()
    promise(last)
    box.close_packs()
    box.indexer().catch_up()
    box.upload_all()
    box.write_ledger()
    box.write_checkpoints(CHECKPOINTS)
    first = box.pack_ids()[0]
    box.evictor.evict_pack(first)
    box.recaller.recall(first, box.pack(first).cloud)
    box.requests.put(Request(kind="evict", study_instance_uid=SAMPLES[1].study))
    box.control().run_once()


def check(box: Box, promised: set[str]) -> list[str]:
    """Restart as the daemons do, and return what is not as promised."""
    wrong: list[str] = []
    expected = {each.sop_instance_uid: each.dataset for each in SAMPLES}

    def look(when: str) -> None:
        found = box.fetch()
        wrong.extend(f"{when}: {uid} is lost" for uid in promised - found.keys())
        wrong.extend(
            f"{when}: {uid}: {got!r:.80}" for uid, got in found.items() if got != expected[uid]
        )

    clear_abandoned(box.files, box.layout)
    box.ingest  # noqa: B018 - the start recovers
    box.indexer().catch_up()
    look("after the restart")
    mark_found(box.layout, box.index)
    box.drain()
    box.control().run_once()
    look("after the drain")
    for each in SAMPLES:
        box.store_sample(each)
    box.drain()
    promised = set(expected)
    look("after all was sent again")
    box.write_checkpoints(CHECKPOINTS)
    wrong += _checkpoints_wrong(box)
    named = packs_named(box.store, box.recovery)
    if len(named) != len(set(named)):
        wrong.append(f"a pack is twice in the ledger: {named}")
    if sorted(set(named)) != sorted(box.pack_ids()):
        wrong.append("the ledger and the index name other packs")
    wrong += [
        f"{pack_id} is pending" for pack_id in box.pack_ids() if box.pack(pack_id).cloud is None
    ]
    for instance in box.served():
        with box.index.read() as view:
            versions = view.instance(
                instance.study_instance_uid, instance.sop_instance_uid
            ).versions
        if len(versions) != 1:
            wrong.append("one instance has become two versions")
    while box.recaller._recalls or box.recaller._following:
        threading.Event().wait(0.01)
    wrong += _left_over(box)
    return wrong


def _checkpoints_wrong(box: Box) -> list[str]:
    """Return what is wrong with the checkpoints: there is one of every full range, and it holds."""
    versions = list(box.store.versions("checkpoints/"))
    names = [CheckpointName.parse(each.key) for each in versions]
    wrong = [f"a checkpoint twice: {names}"] if len(names) != len(set(names)) else []
    if sum(each.range.level == 1 for each in names) != box.uplink.sequence // CHECKPOINTS[0]:
        wrong.append(f"other checkpoints than of {box.uplink.sequence} entries: {names}")
    signing_key = SigningKey.load(str(box.folder / "signing.pem"))
    for name, version in zip(names, versions, strict=True):
        sealed = io.BytesIO(box.store.get(version.key, version.version_id))
        CheckpointReader(sealed, box.recovery, name, {signing_key.public_text}).prove()
    return wrong


def _left_over(box: Box) -> list[str]:
    left = [os.path.join("spool", name) for name in os.listdir(box.layout.spool)]
    left += [os.path.join("checkpoints", name) for name in os.listdir(box.layout.checkpoints)]
    left += [os.path.join("recalled", name) for name in os.listdir(box.layout.recalled)]
    left += [f"request {each}" for each, _ in box.requests.pending()]
    for writer in box.layout.writers():
        left += packs_in(box.layout.writer_directory(writer))
    left += packs_in(box.layout.closed)
    return [f"left over: {name}" for name in left]


def _child(body: Callable[[Connection], None]) -> tuple[int, Connection]:
    """Fork; the child runs the body and ends without cleaning up, as a crash would."""
    ours, theirs = Pipe()
    pid = os.fork()
    if pid == 0:
        ours.close()
        code = 1
        with contextlib.suppress(Exception):
            body(theirs)
            code = 0
        os._exit(code)
    theirs.close()
    return pid, ours


def _serve(store: FakeStore, line: Connection, told: dict[str, list[Any]]) -> None:
    """Answer a child until it is gone."""
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            method, arguments, named = line.recv()
            if method in told:
                told[method].append(arguments[0])
                continue
            try:
                answer = getattr(store, method)(*arguments, **named)
                answer = answer if not hasattr(answer, "__next__") else list(answer)
                line.send((False, answer))
            except (ConnectionError, EOFError):
                raise
            except Exception as error:  # noqa: BLE001 - the child raises it
                line.send((True, error))
    line.close()


def _live(folder: Path, at: int, power: bool, line: Connection) -> None:
    steps = Steps(at)
    die_around_commits(steps)
    files = PowerFiles(steps, folder, at) if power else DyingRenames(steps)
    try:
        box = Box(folder, RemoteStore(line, steps), files=files)
        scenario(box, lambda each: line.send((PROMISE, (each.sop_instance_uid,), {})))
    except Exception as error:
        line.send((RESULT, ([f"the scenario failed: {log.where(error)}: {error}"],), {}))
        raise


def _look(folder: Path, promised: set[str], line: Connection) -> None:
    try:
        wrong = check(Box(folder, RemoteStore(line)), promised)
    except Exception as error:  # noqa: BLE001 - it is the finding
        wrong = [f"{log.where(error)}: {error}"]
    line.send((RESULT, (wrong,), {}))


def run_point(base: Path, keys: Path, at: int, power: bool) -> tuple[bool, list[str]]:
    """Return whether the N-th step was reached, and what was wrong after the restart."""
    folder = base / str(at)
    shutil.copytree(keys, folder)
    store = FakeStore(ManualClock())
    told: dict[str, list[Any]] = {PROMISE: [], RESULT: []}
    pid, line = _child(lambda theirs: _live(folder, at, power, theirs))
    _serve(store, line, told)
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status)
    if told[RESULT]:
        return False, told[RESULT][0]
    pid, line = _child(lambda theirs: _look(folder, set(told[PROMISE]), theirs))
    _serve(store, line, told)
    os.waitpid(pid, 0)
    shutil.rmtree(folder)
    return killed, told[RESULT][0] if told[RESULT] else ["the restart died"]


def main() -> None:
    base = Path(sys.argv[1])
    power = sys.argv[2] == "power"
    stride = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    first = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    log.configure(json_lines=True, level="critical")
    keys = base / "keys"
    keys.mkdir()
    create_keys(keys)
    wrong: dict[int, list[str]] = {}
    at = first
    while at < STEPS_MAX:
        killed, found = run_point(base, keys, at, power)
        if found:
            wrong[at] = found
        if not killed:
            break
        at += stride
    print(json.dumps({"steps": at, "wrong": wrong}))


if __name__ == "__main__":
    main()
