"""Whether the bucket is fit to be an archive, asked again and again; part of the uplink.

Owns what is known of it. Must not change the bucket, and decides nothing about single packs.

Invariants:
- A finding stands until the bucket's own answer ends it. A line that is down, or a question that
  the bucket refuses, changes nothing of what was known.
- Nothing is sent before the bucket was asked once with an answer, be it a refusal.
"""

import threading
from collections.abc import Sequence

from appliance.archive.problem import Problem
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.errors import (
    CloudError,
    CloudMisconfigured,
    CloudUnavailable,
)
from appliance.remote.store import BucketFinding, ObjectStore

LOOK_S = 60.0
SUSPECT_LOOK_S = 10.0
CONDITION = "bucket"
_NO_LOCK = "no_object_lock"
_HELD = "Until then nothing is uploaded or evicted, and reports of cloud and locked are held"

_log = log.get("bucket")


class BucketWatch:
    """What is known of the bucket. Asked by one thread, read by any; `_lock` guards all fields."""

    def __init__(
        self, clock: Clock, store: ObjectStore, *, needs_lock: bool, trusted: bool = True
    ) -> None:
        """`needs_lock`: whether objects are to be locked. `trusted`: what was known before."""
        self._clock = clock
        self._store = store
        self._needs_lock = needs_lock
        self._lock = threading.Lock()
        self._trusted = trusted
        self._answered = False
        self._problem = None if trusted else _problem("it was unfit when last asked", "")
        self._next_look_s = clock.monotonic_s()

    @property
    def trusted(self) -> bool:
        """Whether nothing is known against the bucket."""
        with self._lock:
            return self._trusted

    @property
    def may_send(self) -> bool:
        """Whether uploads may start: it was asked, and nothing is known against it."""
        with self._lock:
            return self._trusted and self._answered

    @property
    def problem(self) -> Problem | None:
        """What is to be shown of it now."""
        with self._lock:
            return self._problem

    def require(self, operation: str, subject: str) -> None:
        """Raise CloudMisconfigured while something is known against the bucket."""
        with self._lock:
            if not self._trusted and self._problem is not None:
                raise CloudMisconfigured(
                    operation, subject, self._problem.sentence, self._problem.hint
                )

    def suspect(self) -> None:
        """Ask at the next turn: a request met what the bucket should not be."""
        with self._lock:
            self._next_look_s = self._clock.monotonic_s()

    def look_if_due(self) -> None:
        """Ask the bucket if it is time to."""
        with self._lock:
            due = self._clock.monotonic_s() >= self._next_look_s
        if due:
            self.look()

    def look(self) -> None:
        """Ask the bucket, and take its answer."""
        try:
            found = [
                each
                for each in self._store.check_bucket()
                if self._needs_lock or each.condition != _NO_LOCK
            ]
        except CloudUnavailable as error:
            self._keep(error, "cloud")
        except CloudMisconfigured as error:
            self._take([BucketFinding("bucket_missing", error.cause, error.hint)])
        except CloudError as error:
            self._keep(error, CONDITION)
        else:
            self._take(found)

    def _take(self, found: Sequence[BucketFinding]) -> None:
        with self._lock:
            before = self._trusted
            self._trusted = not found
            self._answered = True
            self._problem = None
            if found:
                self._problem = _problem(
                    "; ".join(each.detail for each in found),
                    ". ".join(each.hint for each in found if each.hint),
                )
            self._next_look_s = self._clock.monotonic_s() + (SUSPECT_LOOK_S if found else LOOK_S)
        if found and before:
            _log.error("bucket_unfit", conditions=[each.condition for each in found])
        elif not found and not before:
            _log.info("bucket_fit_again")

    def _keep(self, error: CloudError, condition: str) -> None:
        """Note that it could not be asked: what is known stays."""
        refused = not isinstance(error, CloudUnavailable)
        with self._lock:
            # A line that fails later is named by the requests that meet it.
            if self._trusted and (refused or not self._answered):
                self._problem = Problem(condition, str(error), error.hint)
            self._answered = self._answered or refused
            answered = self._answered and self._trusted
            self._next_look_s = self._clock.monotonic_s() + (LOOK_S if answered else SUSPECT_LOOK_S)


def _problem(cause: str, hint: str) -> Problem:
    sentence = f"the bucket is not fit to be an archive: {cause}"
    return Problem(CONDITION, sentence, f"{hint}. {_HELD}" if hint else _HELD)
