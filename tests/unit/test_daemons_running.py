"""A daemon heeds its signals, however many come and whatever it waits for."""

import os
import signal
import subprocess
import sys
import time

import pytest

SIGNALS_COUNT = 20_000
END_S = 15.0
CHILD = """
import os
from appliance.daemons.running import Running

running = Running()
running.install()
os.write(1, b"!")
reloads = 0
while not running.stop.is_set():
    # as a daemon's main thread does: it holds the lock of an event for a moment, again and again
    reloads += running.reload.is_set()
    running.reload.clear()
os._exit(0 if reloads else 3)
"""


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 1) == b"!"
        yield process
        process.kill()


def test_running_outlives_a_storm_of_signals(child):
    """A handler that took a lock would meet itself holding it."""
    end_s = time.monotonic() + END_S
    for _ in range(SIGNALS_COUNT):
        child.send_signal(signal.SIGHUP)
    assert child.poll() is None
    for _ in range(3):
        child.send_signal(signal.SIGTERM)
    assert child.wait(max(1.0, end_s - time.monotonic())) == 0
