"""The peers of the comparison, each with a folder of its own, bound to loopback, ended by id."""

import contextlib
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.support.node import Node, free_port

AE = "AZEKURA"
DICOM_WEB_PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


class Peer:
    """A receiver that listens: its name, its port, how to wait until it has done what it does."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self.pid = 0
        self.http_port = 0


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    import socket

    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        assert process.poll() is None, f"ended with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"nobody listens on {port}")


@contextlib.contextmanager
def _running(command: list[str], port: int, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    try:
        _wait_for_port(port, process)
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def orthanc(folder: Path, destination_port: int, *, dicom_web: bool = False) -> Iterator[Peer]:
    """Orthanc as Debian ships it: SQLite, its defaults but for access from this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    port, http_port = free_port(), free_port()
    configuration = folder / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "storage"),
                "HttpPort": http_port,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "DicomAet": AE,
                "DicomPort": port,
                "DicomAlwaysAllowStore": True,
                "DicomAlwaysAllowFind": True,
                "DicomAlwaysAllowMove": True,
                "DicomAlwaysAllowGet": True,
                "DicomCheckModalityHost": False,
                "DicomModalities": {"WORKSTATION": ["WORKSTATION", "127.0.0.1", destination_port]},
                "Plugins": [DICOM_WEB_PLUGIN] if dicom_web else [],
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            }
        )
    )
    with _running(["Orthanc", str(configuration)], port) as process:
        peer = Peer("Orthanc", port)
        peer.pid = process.pid
        peer.http_port = http_port
        yield peer


def orthanc_version() -> str:
    """Return the version that Orthanc says of itself."""
    done = subprocess.run(["Orthanc", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


@contextlib.contextmanager
def storescp(folder: Path, *options: str, port: int = 0) -> Iterator[Peer]:
    """DCMTK storescp; it writes without fsync."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = ["/usr/bin/storescp", "-aet", AE, "-od", str(folder), *options, str(port)]
    with _running(command, port, env={**os.environ, "TCP_NODELAY": "1"}) as process:
        peer = Peer("DCMTK storescp", port)
        peer.pid = process.pid
        yield peer


@contextlib.contextmanager
def azekura(node: Node, *daemons: str) -> Iterator[Peer]:
    """This node, receiver and uplink by default, with its bucket."""
    node.start(*daemons)
    try:
        peer = Peer("Azekura", node.port)
        peer.pid = node.processes["receive"].pid
        yield peer
    finally:
        node.stop()


def peak_memory_bytes(pid: int) -> int:
    """Return the peak resident memory of a process (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def http_json(url: str) -> object:
    """Return a JSON document."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)
