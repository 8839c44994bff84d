"""A node that queries, retrieves and commits, with an archive in memory, for real peers."""

import contextlib
import io
import os
import pathlib
import queue
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble
from pydicom.uid import generate_uid
from pynetdicom import AE, evt

from appliance.archive.commitment import CommitmentBook, Reached
from appliance.config.model import Config
from appliance.dimse.acceptor import Acceptor
from appliance.dimse.commitment import commitment_service
from appliance.dimse.find import find_service
from appliance.dimse.get import get_service
from appliance.dimse.limits import Limits
from appliance.dimse.move import move_service
from appliance.dimse.reporter import Reporter
from appliance.dimse.storage import storage_service
from appliance.dimse.verification import verification_service
from appliance.foundation.clock import SystemClock
from appliance.foundation.files import FileSystem
from appliance.pixels.transcode import Transcoder
from tests.support.dimse import ALL, encode, make_config, peer
from tests.support.memory_archive import MemoryArchive

WAIT_S = 20


@dataclass
class ServiceNode:
    acceptor: Acceptor
    archive: MemoryArchive
    book: CommitmentBook
    reporter: Reporter
    config: Config
    fatal: list = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.acceptor.port


@contextlib.contextmanager
def service_node(
    tmp_path: pathlib.Path,
    *peers,
    archive: MemoryArchive | None = None,
    transcoder: Transcoder | None = None,
    limits: Limits | None = None,
) -> Iterator[ServiceNode]:
    config = make_config(*peers) if peers else make_config()
    archive = archive or MemoryArchive()
    transcoder = transcoder or Transcoder()
    fatal: list = []
    book = CommitmentBook(
        FileSystem(), str(tmp_path / "state" / "commitment"), SystemClock(), archive.lookup
    )
    reporter = Reporter(book, config.dicom, SystemClock(), fatal.append, limits=limits)
    services = (
        verification_service(),
        storage_service(archive, default_issuer="", extra_sop_classes=()),
        find_service(archive),
        get_service(archive, transcoder),
        move_service(archive, config.dicom, transcoder, limits=limits),
        commitment_service(book, reporter),
    )
    acceptor = Acceptor(config, services, fatal.append)
    acceptor.start()
    reporter.start()
    try:
        yield ServiceNode(acceptor, archive, book, reporter, config, fatal)
    finally:
        reporter.stop()
        acceptor.stop(0.5)
        transcoder.close_idle()
        assert not fatal


def destination(ae_title: str, port: int, **more):
    return peer(ae_title, allow=(*ALL, "destination"), port=port, **more)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(condition, timeout_s: float = WAIT_S):
    """Poll for the effect of another process; what is ours is waited for by events."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.02)
    return found


# --- datasets


def raw_test_file(name: str) -> tuple[bytes, str, Dataset]:
    """Return the dataset's bytes, its transfer syntax and the dataset of a pydicom test file."""
    path = get_testdata_file(name)
    with open(path, "rb") as stream:
        read_preamble(stream, force=True)
        _read_file_meta_info(stream)
        raw = stream.read()
    dataset = pydicom.dcmread(path)
    return raw, str(dataset.file_meta.TransferSyntaxUID), dataset


def add_test_file(archive: MemoryArchive, name: str) -> Dataset:
    raw, transfer_syntax_uid, dataset = raw_test_file(name)
    archive.store(None, dataset.SOPClassUID, dataset.SOPInstanceUID, transfer_syntax_uid, raw)
    return dataset


def add_series(archive: MemoryArchive, count: int, **changes) -> list[str]:
    """Add small CT instances of one new series and study; return their SOP Instance UIDs."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.StudyInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    uids = []
    for number in range(count):
        dataset.SOPInstanceUID = generate_uid()
        dataset.InstanceNumber = number + 1
        archive.store(
            None,
            dataset.SOPClassUID,
            dataset.SOPInstanceUID,
            "1.2.840.10008.1.2.1",
            encode(dataset),
        )
        uids.append(str(dataset.SOPInstanceUID))
    return uids


def study_uid(archive: MemoryArchive, sop_instance_uid: str) -> str:
    return next(
        each.study_instance_uid
        for each in archive.instances
        if each.sop_instance_uid == sop_instance_uid
    )


def reached(sop_class_uid: str, rung: str = "", **more) -> Reached:
    order = ("", "local", "cloud", "locked").index(rung)
    return Reached(sop_class_uid, order >= 1, order >= 2, order >= 3, **more)


# --- peers


@dataclass
class StoreScp:
    """A pynetdicom Storage SCP that keeps what it gets."""

    port: int
    received: list = field(default_factory=list)
    arrived: queue.Queue = field(default_factory=queue.Queue)
    statuses: list[int] = field(default_factory=list)
    gate: threading.Event | None = None
    originators: list = field(default_factory=list)
    callers: list = field(default_factory=list)


@contextlib.contextmanager
def store_scp(
    contexts: dict[str, list[str]], ae_title: str = "DEST", gate: threading.Event | None = None
) -> Iterator[StoreScp]:
    ae = AE(ae_title)
    for sop_class_uid, syntaxes in contexts.items():
        ae.add_supported_context(sop_class_uid, syntaxes)
    scp = StoreScp(0, gate=gate)

    def on_store(event):
        scp.arrived.put(event.request.AffectedSOPInstanceUID)
        if scp.gate is not None:
            scp.gate.wait(30)
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        scp.received.append(dataset)
        scp.originators.append(
            (
                event.request.MoveOriginatorApplicationEntityTitle,
                event.request.MoveOriginatorMessageID,
            )
        )
        scp.callers.append(event.assoc.requestor.ae_title)
        return scp.statuses.pop(0) if scp.statuses else 0x0000

    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    scp.port = server.socket.getsockname()[1]
    try:
        yield scp
    finally:
        server.shutdown()


@contextlib.contextmanager
def storescp(directory: pathlib.Path, *options: str, port: int = 0) -> Iterator[int]:
    """Run DCMTK's storescp, on a free port unless one is given; yield it."""
    program = shutil.which("storescp", path="/usr/bin:/usr/local/bin")
    assert program
    port = port or free_port()
    process = subprocess.Popen(
        [program, *options, "-od", str(directory), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TCP_NODELAY": "1"},
    )
    try:
        wait_for(lambda: _listens(port))
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def stored_files(directory: pathlib.Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(directory.iterdir())]


def decode(raw: bytes, transfer_syntax_uid: str) -> Dataset:
    return read_dataset(io.BytesIO(raw), transfer_syntax_uid == "1.2.840.10008.1.2", True)


def identifier(study: str, **values) -> Dataset:
    """Return the identifier of a retrieve at STUDY level; values by keyword."""
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    dataset.StudyInstanceUID = study
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def counts(status) -> tuple[int, int, int]:
    """Return completed, failed and warning sub-operations of an answer."""
    return (
        status.NumberOfCompletedSuboperations,
        status.NumberOfFailedSuboperations,
        status.NumberOfWarningSuboperations,
    )
