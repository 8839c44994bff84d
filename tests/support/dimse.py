"""What the tests of associations share: configurations, a recording archive, peers that exist.

The archive is a real one in memory: it keeps what it is given and raises what it is told to.
"""

import contextlib
import hashlib
import io
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from appliance.archive.sender import Sender
from appliance.config.model import Config, DicomTls, Peer
from appliance.dimse.acceptor import Acceptor
from appliance.dimse.association import Association, Terms
from appliance.dimse.commands import Command, decode_command
from appliance.dimse.contexts import Context
from appliance.dimse.limits import Limits
from appliance.dimse.service import Service
from appliance.dimse.storage import StoreGate, storage_service
from appliance.dimse.transport import Connection
from appliance.dimse.verification import verification_service
from appliance.foundation.errors import AzekuraError, StorageFailed

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = str(ImplicitVRLittleEndian)
EXPLICIT = str(ExplicitVRLittleEndian)
AE_TITLE = "AZEKURA"
ALL = ("echo", "store", "find", "move", "get", "commit")
SHORT = Limits(
    artim_s=0.5,
    idle_s=0.6,
    pdu_s=0.4,
    message_s=1.0,
    send_s=0.5,
    response_s=2.0,
    closing_s=0.3,
)
"""Deadlines for tests that wait for one."""


@dataclass(frozen=True)
class Stored:
    """One instance that the archive answered for."""

    sender: Sender
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    length: int
    sha256: str
    dataset: bytes | None


@dataclass
class RecordingArchive:
    """Keeps the instances in memory, hashes only when `keep` is false."""

    keep: bool = True
    stored: list[Stored] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    """Raised one by one, the first call first, instead of keeping."""
    streams_aborted: int = 0
    largest_part: int = 0
    arrived: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event | None = None
    """When set to an event, `store` waits for it before it returns."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def store(self, sender, sop_class_uid, sop_instance_uid, transfer_syntax_uid, dataset, sha256):
        self.arrived.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.failures:
            raise self.failures.pop(0)
        digest = hashlib.sha256(dataset).hexdigest()
        assert sha256.hex() == digest
        kept = bytes(dataset) if self.keep else None
        with self._lock:
            self.stored.append(
                Stored(
                    sender, sop_class_uid, sop_instance_uid, transfer_syntax_uid,
                    len(dataset), digest, kept,
                )
            )  # fmt: skip

    def open_stream(self, sender, sop_class_uid, sop_instance_uid, transfer_syntax_uid):
        if self.failures and not isinstance(self.failures[0], StreamFailure):
            raise self.failures.pop(0)
        return RecordingStream(self, (sender, sop_class_uid, sop_instance_uid, transfer_syntax_uid))


class StreamFailure(AzekuraError):
    """Raised by the third part of a stream."""


class RecordingStream:
    def __init__(self, archive, names):
        self.archive = archive
        self.names = names
        self.hash = hashlib.sha256()
        self.length = 0
        self.parts = 0

    def write(self, chunk):
        self.parts += 1
        if self.parts == 3 and self.archive.failures:
            raise self.archive.failures.pop(0)
        self.archive.largest_part = max(self.archive.largest_part, len(chunk))
        self.hash.update(chunk)
        self.length += len(chunk)

    def finish(self):
        self.archive.stored.append(Stored(*self.names, self.length, self.hash.hexdigest(), None))

    def abort(self):
        self.archive.streams_aborted += 1


def peer(ae_title="*", addresses=("127.0.0.0/8", "::1/128"), allow=ALL, **more) -> Peer:
    more.setdefault("host", "127.0.0.1")
    more.setdefault("port", 104)
    more.setdefault("max_associations", 64)
    return Peer(ae_title=ae_title, addresses=addresses, allow=allow, **more)


def make_config(
    *peers: Peer, tls: DicomTls | None = None, cloud: dict | None = None, **dicom
) -> Config:
    return Config(
        node={"name": "test", "demo": True},
        dicom={
            "ae_title": AE_TITLE,
            "host": "127.0.0.1",
            "port": 0,
            "peers": peers or (peer(),),
            "tls": tls,
            **dicom,
        },
        cache={"capacity": "1 GiB"},
        cloud={"bucket": "test-bucket", "region": "ap-northeast-1", **(cloud or {})},
    )


@dataclass
class Running:
    """An acceptor that runs, its archive, and the failures that it escalated."""

    acceptor: Acceptor
    archive: RecordingArchive
    fatal: list[StorageFailed]
    fatal_seen: threading.Event

    @property
    def port(self) -> int:
        return self.acceptor.port

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), 5)
        sock.settimeout(10)
        return sock


@contextlib.contextmanager
def running(
    config: Config | None = None,
    archive: RecordingArchive | None = None,
    *,
    limits: Limits | None = None,
    services: tuple[Service, ...] = (),
    drain_timeout_s: float = 0.0,
    listener: socket.socket | None = None,
    gate: StoreGate | None = None,
) -> Iterator[Running]:
    config = config or make_config()
    archive = archive or RecordingArchive()
    fatal: list[StorageFailed] = []
    seen = threading.Event()

    def on_fatal(error: StorageFailed) -> None:
        fatal.append(error)
        seen.set()

    own = (
        verification_service(),
        storage_service(
            archive,
            default_issuer=config.dicom.issuer,
            extra_sop_classes=config.dicom.extra_sop_classes,
            gate=gate,
        ),
    )
    acceptor = Acceptor(config, (*own, *services), on_fatal, limits=limits, listener=listener)
    acceptor.start()
    try:
        yield Running(acceptor, archive, fatal, seen)
    finally:
        acceptor.stop(drain_timeout_s)


# --- datasets


def small_ct(**changes) -> tuple[pydicom.Dataset, bytes]:
    """Return pydicom's CT_small with changes, and its dataset as explicit little endian bytes."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.SOPInstanceUID = generate_uid()
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset, encode(dataset)


def encode(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    plain = Dataset()
    plain.update(dataset)
    pydicom.dcmwrite(
        buffer, plain, implicit_vr=False, little_endian=True, enforce_file_format=False
    )
    return buffer.getvalue()


def write_part10(dataset: Dataset, path: str) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    dataset.save_as(path, enforce_file_format=True)


def write_ct_series(directory: str, count: int, side: int = 64) -> list[str]:
    """Write CT instances of one series with side by side pixels; return their UIDs."""
    dataset, _ = small_ct()
    del dataset[0xFFFCFFFC]  # DCMTK would drop the padding
    dataset.Rows = dataset.Columns = side
    dataset.PixelData = os.urandom(side * side * 2)
    uids = []
    for number in range(count):
        dataset.SOPInstanceUID = generate_uid()
        dataset.InstanceNumber = number + 1
        write_part10(dataset, os.path.join(directory, f"{number:05d}.dcm"))
        uids.append(dataset.SOPInstanceUID)
    return uids


# --- DCMTK


def dcmtk(name: str, *arguments: str, nodelay: bool = False) -> subprocess.CompletedProcess[str]:
    program = shutil.which(name, path="/usr/bin:/usr/local/bin")
    assert program, f"DCMTK's {name} is not installed"
    environment = {**os.environ, "TCP_NODELAY": "1" if nodelay else "0"}
    return subprocess.run(
        [program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )


def echoscu(port: int, *more: str) -> subprocess.CompletedProcess[str]:
    return dcmtk("echoscu", "-aec", AE_TITLE, *more, "127.0.0.1", str(port))


# --- raw PDUs


def pdv(context_id: int, control: int, data: bytes) -> bytes:
    return struct.pack(">BxIIBB", 4, len(data) + 6, len(data) + 2, context_id, control) + data


def read_pdu(sock: socket.socket) -> tuple[int, bytes]:
    header = read_exactly(sock, 6)
    kind, length = struct.unpack(">BxI", header)
    return kind, read_exactly(sock, length)


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise EOFError(data)
        data += chunk
    return data


def is_closed(sock: socket.socket) -> bool:
    """Read to the end of the stream; a reset is an end too."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


# --- associations without a network


def context(context_id=1, abstract_syntax=CT, transfer_syntax=EXPLICIT, **roles) -> Context:
    roles = {"as_scp": True, "as_scu": False, **roles}
    return Context(context_id, abstract_syntax, transfer_syntax, **roles)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname(), 10)
        ours, _ = server.accept()
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


@contextlib.contextmanager
def linked(
    *contexts: Context, limits: Limits | None = None, max_pdu_send_bytes: int = 16384, caller=None
) -> Iterator[tuple[Association, socket.socket]]:
    """Yield an accepted association and the raw socket of its peer."""
    ours, theirs = tcp_pair()
    limits = limits or Limits()
    terms = Terms(
        "CALLER", AE_TITLE,
        {one.context_id: one for one in contexts or (context(),)},
        max_pdu_send_bytes, {}, caller or peer(),
    )  # fmt: skip
    association = Association(Connection(ours, limits), terms, limits, peer_address="127.0.0.1")
    try:
        yield association, theirs
    finally:
        association.close()
        theirs.close()


def read_message(sock: socket.socket) -> tuple[int, Command, bytes | None]:
    """Read one message as a peer would: context id, command, dataset."""
    parts = {1: b"", 0: b""}
    command = None
    while True:
        kind, body = read_pdu(sock)
        assert kind == 4, (kind, body)
        while body:
            length, context_id, control = struct.unpack_from(">IBB", body)
            parts[control & 1] += body[6 : length + 4]
            body = body[length + 4 :]
            if control == 3:
                command = decode_command(context_id, parts[1])
                if not command.has_dataset:
                    return context_id, command, None
            elif control == 2:
                return context_id, command, parts[0]
