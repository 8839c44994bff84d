"""Rewriting an instance for a destination that does not take its stored transfer syntax.

Owns the confined worker processes. Pixels are never decoded here, only there. Invariants: a worker
that dies, hangs or lies costs one instance, never this process; every wait has a limit; a result
is sealed against shrinking before it is mapped, so that no worker can pull it away.
"""

import contextlib
import fcntl
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import msgspec

from appliance.archive.extent import Dataset
from appliance.dicom.uid import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from appliance.foundation import log
from appliance.foundation.errors import Busy, DatasetNotUnderstood, LimitExceeded
from appliance.pixels.transcode_messages import (
    DATASET_MAX_BYTES,
    IDLE_MAX_S,
    MESSAGE_MAX_BYTES,
    RESULT_MAX_BYTES,
    Answer,
    Job,
    decode_answer,
    encode,
)

INSTANCE_MAX_S = 60.0
START_MAX_S = 30.0
FREE_WORKER_MAX_S = 120.0
JOBS_MAX = 1000
WRITE_BYTES = 8 * 1024 * 1024
WORKERS_MAX = 2

TARGETS = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
"""What an instance may be rewritten into, the preferred one first."""

_F_ADD_SEALS = 1033
_F_SEAL_SHRINK = 0x0002
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

_log = log.get("transcode")


class _Worker:
    """One worker process and its socket. Used by one thread at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = ours
        self.jobs_count = 0
        self.idle_since_monotonic_s = time.monotonic()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "appliance.pixels.transcode_worker"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=_environment(),
            )
        try:
            self.ready = self._answer(START_MAX_S)[0]
        except Exception:
            self.kill()
            raise
        _log.info(
            "transcoding_worker_started",
            network_dropped=self.ready.network_dropped,
            files_closed=self.ready.files_closed,
        )

    def run(self, dataset: Dataset, job: Job, timeout_s: float) -> mmap.mmap:
        source = os.memfd_create("dataset", os.MFD_CLOEXEC)
        try:
            done = 0
            while done < len(dataset):
                done += os.write(source, dataset[done : done + WRITE_BYTES])
            os.lseek(source, 0, os.SEEK_SET)
            socket.send_fds(self.channel, [encode(job)], [source])
        finally:
            os.close(source)
        self.jobs_count += 1
        answer, descriptors = self._answer(timeout_s)
        try:
            if answer.failure:
                raise DatasetNotUnderstood("transcode", job.source, answer.failure)
            return _map_sealed(descriptors, answer.length)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _answer(self, timeout_s: float) -> tuple[Answer, list[int]]:
        self.channel.settimeout(timeout_s)
        message, descriptors, _flags, _address = socket.recv_fds(self.channel, MESSAGE_MAX_BYTES, 1)
        if not message:
            raise EOFError
        return decode_answer(message), descriptors

    @property
    def spent(self) -> bool:
        idle_s = time.monotonic() - self.idle_since_monotonic_s
        return self.jobs_count >= JOBS_MAX or idle_s > IDLE_MAX_S or self.process.poll() is not None

    def kill(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


class Transcoder:
    """A few workers, started when needed. Thread-safe; `_lock` guards the list of idle workers."""

    def __init__(
        self, *, workers_max: int = WORKERS_MAX, instance_max_s: float = INSTANCE_MAX_S
    ) -> None:
        self._instance_max_s = instance_max_s
        self._free = threading.BoundedSemaphore(workers_max)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []

    @contextlib.contextmanager
    def converted(self, dataset: Dataset, source: str, target: str) -> Iterator[memoryview]:
        """Give the dataset in `target`, one of TARGETS, for as long as the block lasts.

        Errors as for `result`.
        """
        with self.result(dataset, Job(source, target)) as view:
            yield view

    @contextlib.contextmanager
    def result(self, dataset: Dataset, job: Job) -> Iterator[memoryview]:
        """Give what a worker makes of a dataset for as long as the block lasts.

        Raises DatasetNotUnderstood for what can't be decoded or kills its worker, LimitExceeded
        for what is too large or takes too long, Busy when no worker comes free.
        """
        if len(dataset) > DATASET_MAX_BYTES:
            raise LimitExceeded("transcode", job.source, f"{len(dataset)} bytes")
        if not self._free.acquire(timeout=FREE_WORKER_MAX_S):
            raise Busy("transcode", job.source, "every worker is busy")
        try:
            mapped = self._convert(dataset, job)
        finally:
            self._free.release()
        try:
            with memoryview(mapped) as view:
                yield view
        finally:
            with contextlib.suppress(BufferError):
                mapped.close()

    def _convert(self, dataset: Dataset, job: Job) -> mmap.mmap:
        worker = self._take()
        try:
            result = worker.run(dataset, job, self._instance_max_s)
        except DatasetNotUnderstood:
            self._give_back(worker)
            raise
        except TimeoutError as cause:
            worker.kill()
            _log.warning("transcoding_took_too_long", transfer_syntax_uid=job.source)
            raise LimitExceeded(
                "transcode", job.source, f"longer than {self._instance_max_s:.0f} s"
            ) from cause
        except (OSError, EOFError, msgspec.DecodeError, ValueError) as cause:
            worker.kill()
            _log.warning("transcoding_worker_died", transfer_syntax_uid=job.source)
            raise DatasetNotUnderstood("transcode", job.source, "the worker died of it") from cause
        except BaseException:
            worker.kill()
            raise
        self._give_back(worker)
        return result

    def _take(self) -> _Worker:
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                break
            if not worker.spent:
                return worker
            worker.kill()
        try:
            return _Worker()
        except (OSError, EOFError, msgspec.DecodeError) as cause:
            raise Busy("start a transcoding worker", cause=type(cause).__name__) from cause

    def _give_back(self, worker: _Worker) -> None:
        worker.idle_since_monotonic_s = time.monotonic()
        with self._lock:
            self._idle.append(worker)

    def close_idle(self) -> None:
        """End workers that nothing uses, and their memory with them; later calls start new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()


def _map_sealed(descriptors: list[int], length: int) -> mmap.mmap:
    if len(descriptors) != 1 or not 0 < length <= RESULT_MAX_BYTES:
        raise ValueError("no result came along")
    fcntl.fcntl(descriptors[0], _F_ADD_SEALS, _F_SEAL_SHRINK)
    if os.fstat(descriptors[0]).st_size != length:
        raise ValueError("the result has another length than was said")
    return mmap.mmap(descriptors[0], length, mmap.MAP_SHARED, mmap.PROT_READ)


def _environment() -> dict[str, str]:
    # Nothing is inherited: credentials of the daemon are in its environment.
    return {
        "PYTHONPATH": _ROOT,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
