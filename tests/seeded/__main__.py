"""Does the suite notice? Applies each bug of `bugs` to a copy of the package and runs its tests.

Run as a program: `python -m tests.seeded [NAME…]`. Prints which test caught each bug; exits 1 when
one was not caught, or when the tests fail without any bug.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.seeded.bugs import BUGS, Bug

ROOT = Path(__file__).parents[2]
COPIED = ("appliance", "tests", "docs", "pyproject.toml")
RUN_S = 600
# A test that fails may leave a thread of the box behind, for which Python would wait at its end.
_PYTEST = """
import os, sys, pytest
code = pytest.main(sys.argv[1:])
sys.stdout.flush()
os._exit(code)
"""
_CAUGHT = re.compile(r"^(?:FAILED|ERROR) tests/(\S+?)(?:\[.*)?(?: - .*)?$", re.MULTILINE)


def run(folder: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests in a copy until one fails; return pytest's exit code and output."""
    done = subprocess.run(
        [
            sys.executable, "-c", _PYTEST, "-q", "-x", "-m", "not soak",
            "-p", "no:cacheprovider", *tests,
        ],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def copy(folder: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)


def caught_by(folder: Path, bug: Bug) -> str:
    """Return the test that notices a bug, "" when none does."""
    path = folder / bug.path
    sound = path.read_text()
    if sound.count(bug.before) != 1:
        raise SystemExit(f"{bug.name}: {bug.path} has changed; seed it anew")
    path.write_text(sound.replace(bug.before, bug.after))
    try:
        code, output = run(folder, bug.tests)
    finally:
        path.write_text(sound)
    if code == 0:
        return ""
    found = _CAUGHT.search(output)
    if code != 1 or found is None:
        raise SystemExit(f"{bug.name}: pytest ended with {code}\n{output[-3000:]}")
    return found[1]


def main(wanted: list[str]) -> int:
    """Print the table; return the exit code."""
    bugs = [bug for bug in BUGS if not wanted or bug.name in wanted]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="azekura-seeded-") as temporary:
        folder = Path(temporary)
        copy(folder)
        tests = tuple(dict.fromkeys(test for bug in bugs for test in bug.tests))
        code, output = run(folder, tests)
        if code != 0:
            print(output[-3000:])
            print("the tests fail without any bug: nothing is proved")
            return 1
        for bug in bugs:
            test = caught_by(folder, bug)
            missed += not test
            print(f"{bug.name:40} {test or 'NOT CAUGHT'}", flush=True)
    print(f"{len(bugs) - missed} of {len(bugs)} seeded bugs caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
