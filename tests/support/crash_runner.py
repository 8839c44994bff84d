"""Kills a process at every step of an instance's way, restarts it, and looks what is left.

Run as a program: `python -m tests.support.crash_runner FOLDER kill|power [STRIDE [FIRST]]`. It
stays single-threaded, so that it may fork: for each N a child goes through `scenario` and ends
itself by SIGKILL at its N-th step; a second child restarts over the same folder and checks the
promises. With `power` the child first makes the folder what a power cut may leave of it. The object
store lives in this process, as a bucket outlives a node. One JSON document goes to standard output.

A step is an operation on a durable file, in front of it and in the middle of a write; a commit of
the index, in front and behind; a request to the store, in front and behind. A write is torn where
the kernel may tear it: between two sectors, never inside one.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from appliance.archive.checkpoint import CheckpointName, CheckpointReader
from appliance.archive.indexer import mark_found
from appliance.archive.layout import packs_in
from appliance.archive.recall import clear_abandoned
from appliance.archive.requests import Request
from appliance.foundation import log
from appliance.foundation.files import FileSystem
from appliance.index.environment import Environment
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
from tests.support.fake_store import FakeStore
from tests.support.manual_clock import ManualClock
from tests.support.pack_samples import CT_STORAGE, SECTOR_BYTES, survivors

STEPS_MAX = 2000
CHECKPOINTS = (2,)  # entries a range
SAMPLES = [sample(number % 2, number) for number in range(5)] + [sample(2, 9, 30_000)]
PROMISE, RESULT = "promise", "result"


class Steps:
    """Counts steps; at the chosen one the process is gone, after `last_act`."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._guard = threading.Lock()
        self.count = 0
        self.last_act: Callable[[], object] = int

    def step(self, before_end: Callable[[], object] | None = None) -> None:
        with self._guard:
            self.count += 1
            if self.count != self._at:
                return
            if before_end is not None:
                before_end()
            self.last_act()
            os.kill(os.getpid(), signal.SIGKILL)


class DyingFiles(FileSystem):
    """The operations on durable files, each a step; a write is two: in front and in the middle."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def pwritev(self, fd, buffers, offset):
        self._steps.step()
        content = b"".join(bytes(each) for each in buffers)
        middle = (offset + len(content) // 2) // SECTOR_BYTES * SECTOR_BYTES - offset
        self._steps.step(lambda: middle > 0 and os.pwrite(fd, content[:middle], offset))
        return super().pwritev(fd, buffers, offset)

    def write_volatile(self, path, content):
        self._steps.step()
        super().write_volatile(path, content)


def _stepped(name: str) -> Callable[..., Any]:
    real = getattr(FileSystem, name)

    def operation(self, *arguments, **named):
        self._steps.step()
        return real(self, *arguments, **named)

    return operation


for _name in ("open", "preallocate", "truncate", "fdatasync", "fsync_directory"):
    setattr(DyingFiles, _name, _stepped(_name))


class DyingRenames(DyingFiles):
    """Also between a rename or unlink and the flush of its directory."""

    def rename(self, source, target):
        self._steps.step()
        super().rename(source, target)

    def unlink(self, path):
        self._steps.step()
        super().unlink(path)


class PowerFiles(DyingFiles):
    """Remembers what of files and directories was flushed, and at the end forgets the rest.

    Of the bytes of a file any sectors that were not flushed may be there; of the directory entries
    the oldest changes up to any. The index is LMDB's own affair: it flushes at each commit.
    """

    def __init__(self, steps: Steps, folder: Path, seed: int) -> None:
        super().__init__(steps)
        self._draw = random.Random(seed)
        self._folder = folder
        self._stash = folder / "stash"
        self._stash.mkdir()
        self._flushed: dict[int, bytes] = {}
        self._changes: list[tuple[str, Callable[[], object]]] = []
        steps.last_act = self.cut

    def open(self, path, flags, mode=0o660):
        known = os.path.isfile(path)
        if known:
            self._flushed.setdefault(os.stat(path).st_ino, Path(path).read_bytes())
        fd = super().open(path, flags, mode)
        if not known and not os.path.isdir(path):
            self._flushed[os.fstat(fd).st_ino] = b""
            self._changes.append((os.path.dirname(path), lambda: os.unlink(path)))
        return fd

    def fdatasync(self, fd):
        super().fdatasync(fd)
        self._flushed[os.fstat(fd).st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def fsync_directory(self, path):
        super().fsync_directory(path)
        self._changes = [each for each in self._changes if each[0] != path]

    def rename(self, source, target):
        self._steps.step()
        kept = self._keep(target)

        def undo() -> None:
            if not os.path.exists(source):
                os.rename(target, source)
                if kept is not None:
                    os.rename(kept, target)

        self._changes.append((os.path.dirname(target), undo))
        super().rename(source, target)

    def unlink(self, path):
        self._steps.step()
        kept = self._keep(path)
        if kept is not None:

            def undo() -> None:
                if not os.path.exists(path):
                    os.rename(kept, path)

            self._changes.append((os.path.dirname(path), undo))
        super().unlink(path)

    def _keep(self, path: str) -> str | None:
        """Keep a file that loses its name; None when there is none."""
        if not os.path.exists(path):
            return None
        kept = str(self._stash / f"{len(os.listdir(self._stash))}")
        os.link(path, kept)
        return kept

    def cut(self) -> None:
        """Leave what a power cut may leave."""
        lost = self._draw.randint(0, len(self._changes))
        for _, undo in reversed(self._changes[len(self._changes) - lost :]):
            undo()
        for path in (self._folder / "data").rglob("*"):
            if not path.is_file() or path.is_relative_to(self._folder / "data" / "index"):
                continue
            flushed = self._flushed.get(path.stat().st_ino)
            written = path.read_bytes()
            if flushed is not None and flushed != written:
                path.write_bytes(survivors(self._draw, flushed, written))


def die_around_commits(steps: Steps) -> None:
    """Make each commit of the index two steps."""
    real = Environment.end

    def end(self, transaction, *, commit=False):
        if commit:
            steps.step()
        real(self, transaction, commit=commit)
        if commit:
            steps.step()

    Environment.end = end


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
