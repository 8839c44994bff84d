"""SIGKILL and power cuts at every step from C-STORE to the bucket and back: promises are kept.

After each, every instance answered Success is readable by its hash, here or from the bucket; none
is visible half-written; no pack is twice in the ledger; the upload finishes; nothing is left over.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.memory_folder import memory_path  # noqa: F401

ROOT = Path(__file__).parents[2]
STEPS_LEAST = 200


def _run(folder: Path, way: str, stride: int, first: int = 1) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.support.crash_runner", str(folder), way, str(stride),
            str(first),
        ],
        capture_output=True, text=True, cwd=ROOT, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] > STEPS_LEAST
    assert found["wrong"] == {}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["kill", "power"])
def test_an_end_at_some_steps_loses_and_doubles_nothing(memory_path: Path, way: str) -> None:
    """Every fifth step; all of them in `make soak`."""
    _run(memory_path, way, 5)


@pytest.mark.soak
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("way", ["kill", "power"])
def test_an_end_at_any_step_loses_and_doubles_nothing(memory_path: Path, way: str) -> None:
    """Every single step."""
    _run(memory_path, way, 1)
