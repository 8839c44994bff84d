"""The receiver under a service manager: ready, watched, restarted without refusing anybody."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

WAIT_S = 90.0
CONFIGURATION = """
[node]
name = "site-a"
data_dir = "{data}"
timezone = "Asia/Tokyo"
[dicom]
host = "127.0.0.1"
port = {port}
[[dicom.peers]]
ae_title = "*"
addresses = ["127.0.0.0/8"]
allow = ["echo", "store"]
[cache]
capacity = "1 GiB"
[cloud]
endpoint_url = "http://127.0.0.1:9"
region = "us-east-1"
bucket = "nobody"
[keys]
identity = "credential:azekura-identity"
signing = "credential:azekura-signing"
recovery = ["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"]
"""


class Manager:
    """As much of a service manager as a receiver sees: its socket, its ear, its watchdog."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.listener = socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 100))
        self.port = self.listener.getsockname()[1]
        self._folder = folder
        self._path = folder / "azekura.toml"
        self._path.write_text(CONFIGURATION.format(data=folder / "data", port=self.port))
        self.ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ear.bind(str(folder / "notify"))
        self.ear.settimeout(WAIT_S)

    @contextlib.contextmanager
    def receiver(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the daemon as its unit does, up to its readiness."""
        script = (
            f"umask 0007; exec 3<&{self.listener.fileno()}; "
            'LISTEN_PID=$$ LISTEN_FDS=1 WATCHDOG_PID=$$ exec "$0" "$@"'
        )
        environment = {
            **os.environ, "NOTIFY_SOCKET": str(self._folder / "notify"), "WATCHDOG_USEC": "1500000",
        }  # fmt: skip
        with (self._folder / "log").open("ab") as out:
            process = subprocess.Popen(
                ["/bin/bash", "-c", script, sys.executable, "-m", "appliance.cli.main",
                 "--config", str(self._path), "receive"],
                env=environment, pass_fds=[self.listener.fileno()], stderr=out, stdout=out,
            )  # fmt: skip
        try:
            self.hear(b"READY=1")
            yield process
        finally:
            process.kill()
            process.wait(WAIT_S)

    def hear(self, word: bytes) -> None:
        """Wait until the daemon has said that; what else it says is passed over."""
        while self.ear.recv(256) != word:
            pass

    def close(self) -> None:
        self.listener.close()
        self.ear.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(Manager(tmp_path)) as made:
        yield made


def echo(manager: Manager) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            "/usr/bin/echoscu",
            "-ta",
            "90",
            "-td",
            "90",
            "-aec",
            "AZEKURA",
            "127.0.0.1",
            str(manager.port),
        ]
    )


def check_shared(data: Path) -> None:
    """Its group may write whatever a daemon makes; nobody else may see any of it."""
    found = {path: path.stat().st_mode & 0o777 for path in data.rglob("*")}
    assert any(path.suffix == ".tar" for path in found)
    assert {path: oct(mode) for path, mode in found.items() if mode not in {0o660, 0o770}} == {}


def test_a_restart_refuses_nobody(manager: Manager, tmp_path: Path) -> None:
    """Who connects while no receiver runs waits in the kernel's queue, and is answered.

    Before, the receiver has fed the watchdog, said that it stops, and left files for its group.
    """
    with manager.receiver() as process:
        instance = str(get_testdata_file("CT_small.dcm", download=False))
        subprocess.run(
            ["storescu", "-aec", "AZEKURA", "127.0.0.1", str(manager.port), instance],
            check=True, timeout=WAIT_S,
        )  # fmt: skip
        for _ in range(3):
            manager.hear(b"WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        manager.hear(b"STOPPING=1")
        assert process.wait(WAIT_S) == 0
    check_shared(tmp_path / "data")
    early = echo(manager)
    with socket.create_connection(("127.0.0.1", manager.port), WAIT_S):  # the queue takes it
        assert early.poll() is None
        with manager.receiver():
            assert early.wait(WAIT_S) == 0
            assert echo(manager).wait(WAIT_S) == 0
