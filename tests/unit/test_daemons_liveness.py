"""The watchdog is fed while everything lives, and by nothing else."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.daemons.liveness import Liveness

WAIT_S = 60.0
CHILD = """
import os, threading
from appliance.daemons.running import Running
from appliance.foundation import log

log.configure(json_lines=True)
running = Running()
running.install()
# the thread ends with the standard input
thread = threading.Thread(target=os.read, args=(0, 1), name="loop", daemon=True)
thread.start()
running.liveness.watch([thread])
os._exit(running.wait())
"""


def test_liveness_names_a_part_that_is_silent_until_it_beats_again() -> None:
    now = [100.0]
    liveness = Liveness(lambda: now[0])
    beat = liveness.beat("closer", 5.0)
    other = liveness.beat("acceptor", 60.0)
    now[0] += 5.0
    assert liveness.sick() == []
    now[0] += 0.1
    assert liveness.sick() == ["closer"]
    beat()
    assert liveness.sick() == []
    now[0] += 61.0
    assert liveness.sick() == ["acceptor", "closer"]
    other()
    assert liveness.sick() == ["closer"]


def test_liveness_names_a_thread_that_has_ended() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="ledger")
    thread.start()
    liveness = Liveness()
    liveness.watch([thread])
    assert liveness.sick() == []
    end.set()
    thread.join()
    assert liveness.sick() == ["ledger"]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's end of the notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(WAIT_S)
        yield sock


def test_the_watchdog_starves_when_a_thread_has_ended(manager: socket.socket) -> None:
    """Through a real socket: fed again and again, then never more."""
    environment = {
        **os.environ, "NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "600000",
    }  # fmt: skip
    environment.pop("WATCHDOG_PID", None)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        try:
            for _ in range(3):
                assert manager.recv(64) == b"WATCHDOG=1"
            assert child.stdin is not None
            assert child.stderr is not None
            child.stdin.close()
            assert '"parts": ["loop"], "event": "watchdog_not_fed"' in child.stderr.readline()
            while select.select([manager], [], [], 0)[0]:  # what was sent before it was noticed
                manager.recv(64)
            child.send_signal(signal.SIGTERM)
            assert manager.recv(64) == b"STOPPING=1"
            assert child.wait(WAIT_S) == 0
        finally:
            child.kill()
