"""A child that is kept alive, and a daemon that could not start."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from appliance.daemons import child as module
from appliance.daemons.child import Child
from appliance.foundation.files import FileLock
from appliance.seal.identity import load_identity
from tests.support.archive_box import create_keys

LIVES = "http.server"
ARGUMENTS = ("0", "--bind", "127.0.0.1")


def _until(what) -> None:
    for _ in range(3000):
        if what():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")


def test_a_killed_child_is_started_again(monkeypatch) -> None:
    monkeypatch.setattr(module, "RESTART_MIN_S", 0.01)
    child = Child("test", LIVES, ARGUMENTS)
    child.start()
    _until(lambda: child.pid is not None)
    first = child.pid
    os.kill(first, signal.SIGKILL)
    _until(lambda: child.pid != first)
    child.stop()
    assert not Path(f"/proc/{child.pid}").exists()


def test_stop_ends_a_child_that_waits_to_be_started_again(monkeypatch) -> None:
    """Also while it lies in its delay: nothing is started behind our back."""
    monkeypatch.setattr(module, "RESTART_MIN_S", 20.0)
    child = Child("test", LIVES, ARGUMENTS)
    child.start()
    _until(lambda: child.pid is not None)
    first = child.pid
    os.kill(first, signal.SIGKILL)
    _until(lambda: child._process.poll() is not None)
    child.stop()
    assert child.pid == first
    assert not child._thread.is_alive()


def test_a_receiver_whose_port_is_taken_ends_and_lets_go(tmp_path: Path) -> None:
    """It says so by its exit code, and leaves no thread, child or lock behind."""
    create_keys(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = tmp_path / "azekura.toml"
        config.write_text(_config(tmp_path, taken.getsockname()[1]))
        done = subprocess.run(
            [sys.executable, "-m", "appliance.cli.main", "--config", str(config), "receive"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 78, done.stderr
    assert "can't be bound" in done.stderr
    for path in ("packs/open/receive/lock", "index/indexer.lock"):
        if (tmp_path / "data" / path).exists():
            flock = FileLock(str(tmp_path / "data" / path))
            flock.acquire()
            flock.release()


def _config(folder: Path, port: int) -> str:
    recovery = load_identity(str(folder / "recovery.key"))[0].recipient
    return f"""
[node]
name = "site-a"
data_dir = "{folder}/data"
[dicom]
host = "127.0.0.1"
port = {port}
[[dicom.peers]]
ae_title = "*"
addresses = ["127.0.0.0/8"]
allow = ["echo"]
[cache]
capacity = "1 GiB"
[cloud]
retention = "1 d"
endpoint_url = "http://127.0.0.1:9"
region = "us-east-1"
bucket = "archive"
[keys]
identity = "{folder}/node.key"
signing = "{folder}/signing.pem"
recovery = ["{recovery}"]
"""
