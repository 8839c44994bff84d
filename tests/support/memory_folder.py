"""A folder in memory, for tests whose file layer decides what a flush means.

Where the medium is played by the test, a real disk's flushes prove nothing more and cost minutes.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = "/dev/shm"


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """Like tmp_path, in memory where the machine has such a place; removed with the test."""
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="azekura-test-", dir=place))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
