"""What a check is, what it finds, and running many of them in bounded time.

Owns the form of a finding. Must not know any check; whoever runs them says which.

Invariants:
- A check changes nothing that a daemon would notice, and may run beside the daemons.
- A check that breaks or hangs is itself a finding: the others are not held up by it.
- What a finding says names no patient and no UID.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from appliance.foundation.errors import AzekuraError

LIMIT_S = 15.0


class Severity(StrEnum):
    """How much a finding matters: `warning` needs a look this week, `error` needs one now."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    condition: a constant name, the same for the good and the bad case. sentence: what was found.
    hint: what to do about it, or what it means. fix: a command that repairs it, if one does.
    """

    condition: str
    severity: Severity
    sentence: str
    hint: str = ""
    fix: str | None = None


Findings = list[Finding]


@dataclass(frozen=True, slots=True)
class Check:
    """A check with what it needs bound to it; `run` returns at least one finding."""

    condition: str
    run: Callable[[], Findings]


def ok(condition: str, sentence: str, hint: str = "") -> Finding:
    """Return the finding that all is well."""
    return Finding(condition, Severity.OK, sentence, hint)


def warning(condition: str, sentence: str, hint: str, fix: str | None = None) -> Finding:
    """Return a finding that needs a look."""
    return Finding(condition, Severity.WARNING, sentence, hint, fix)


def error(condition: str, sentence: str, hint: str, fix: str | None = None) -> Finding:
    """Return a finding that needs an act."""
    return Finding(condition, Severity.ERROR, sentence, hint, fix)


def failed(condition: str, cause: AzekuraError) -> Finding:
    """Return the finding that an error makes."""
    sentence = cause.operation
    if cause.subject:
        sentence += f" ({cause.subject})"
    if cause.cause:
        sentence += f": {cause.cause}"
    return error(condition, sentence, cause.hint)


class _Run:
    """One check in a thread of its own. `findings` is set before `done` is, by that thread."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.findings: Findings = []
        self.done = threading.Event()
        # Daemonic: a check that hangs on a dead disk or line must not keep the command from ending.
        self._thread = threading.Thread(
            target=self._body, name=f"check-{check.condition}", daemon=True
        )
        self._thread.start()

    def _body(self) -> None:
        try:
            self.findings = self.check.run()
        except AzekuraError as cause:
            self.findings = [failed(self.check.condition, cause)]
        except Exception as cause:  # noqa: BLE001 -- the boundary of a check: it is a finding
            self.findings = [
                error(
                    self.check.condition,
                    f"the check itself broke: {type(cause).__name__}: {cause}",
                    "Run it as the daemons' user; if it stays, report it",
                )
            ]
        self.done.set()

    def result(self, end_s: float) -> Findings:
        """Return what was found until the monotonic time `end_s`."""
        if self.done.wait(max(0.0, end_s - time.monotonic())):
            return self.findings
        return [
            error(
                self.check.condition,
                "no result in time",
                "What it looks at hangs: a disk, a line, or a daemon that does not answer",
            )
        ]


def run_checks(checks: Sequence[Check], limit_s: float = LIMIT_S) -> Findings:
    """Run all checks at once and return their findings, in the order of the checks.

    Returns within `limit_s` seconds, whatever a check does.
    """
    end_s = time.monotonic() + limit_s
    runs = [_Run(check) for check in checks]
    return [finding for run in runs for finding in run.result(end_s)]
