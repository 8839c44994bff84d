"""SIGKILL at every step from C-STORE to the bucket and back: what was promised is kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS_LEAST = 200


def _run(folder: Path, stride: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.crash_runner", str(folder), str(stride)],
        capture_output=True, text=True, cwd=ROOT, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] > STEPS_LEAST
    assert found["wrong"] == {}


def test_a_kill_at_some_steps_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Every instance answered Success is readable by its hash, here or from the bucket; nothing is
    visible half-written; no pack is twice in the ledger; the upload finishes; nothing is left over.
    Every third step here, all of them in `make soak`."""
    _run(tmp_path, 3)


@pytest.mark.soak
@pytest.mark.timeout(1000)
def test_a_kill_at_any_step_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The same at every single step."""
    _run(tmp_path, 1)
