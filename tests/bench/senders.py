"""The senders: DCMTK's tools, timed as whole processes."""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.peers import AE

TIMEOUT_S = 600


def _environment(*, nodelay: bool) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("TCP_NODELAY", None)
    return environment | ({"TCP_NODELAY": "1"} if nodelay else {})


def _run_together(commands: Sequence[list[str]], *, nodelay: bool) -> float:
    """Run commands side by side; return the seconds until the last has ended well.

    What others have left to be written back is written first: it would be counted here.
    """
    os.sync()
    started_s = time.perf_counter()
    processes = [
        subprocess.Popen(
            command, env=_environment(nodelay=nodelay), stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for command in commands
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, errors.decode(errors="replace")[-2000:]
    return time.perf_counter() - started_s


def store(port: int, folders: Sequence[Path], *, nodelay: bool = True) -> float:
    """Send each folder on an association of its own, at once; return seconds."""
    commands = [
        ["/usr/bin/storescu", "-aec", AE, "127.0.0.1", str(port), "+sd", str(folder)]
        for folder in folders
    ]
    return _run_together(commands, nodelay=nodelay)


def _study_keys(study: str) -> list[str]:
    return ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"]


def get(port: int, study: str) -> float:
    """Fetch a study by C-GET, received and not stored; return seconds."""
    command = ["/usr/bin/getscu", "-S", "-aec", AE, "--ignore"]
    return _run_together([[*command, "127.0.0.1", str(port), *_study_keys(study)]], nodelay=True)


def move(port: int, study: str) -> float:
    """Have a study moved to WORKSTATION; return seconds."""
    command = ["/usr/bin/movescu", "-S", "-aec", AE, "-aem", "WORKSTATION", "127.0.0.1", str(port)]
    return _run_together([[*command, *_study_keys(study)]], nodelay=True)
