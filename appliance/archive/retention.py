"""Until when an object is locked: by the bucket's own clock, never by a bucket default.

Invariant: where the bucket's clock and this box's are far apart, one of them is wrong, and nothing
is locked: a date under compliance mode can't be taken back, and one too early protects nobody.
"""

from datetime import timedelta

from appliance.foundation.clock import Clock
from appliance.foundation.errors import CloudMisconfigured
from appliance.remote.store import Lock, LockMode, ObjectStore

CLOCKS_APART_MAX = timedelta(days=1)

_MODES: dict[str, LockMode | None] = {
    "compliance": "COMPLIANCE",
    "governance": "GOVERNANCE",
    "off": None,
}


class Retention:
    """The lock that a new object gets. With mode `off` there is none."""

    def __init__(self, store: ObjectStore, mode: str, retention_s: float, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._mode: LockMode | None = _MODES[mode]
        self._retention_s = retention_s

    def lock(self) -> Lock | None:
        """Return the lock from now on; asks the bucket for its time, so CloudError may come.

        CloudMisconfigured when its clock and ours are more than CLOCKS_APART_MAX apart.
        """
        if self._mode is None:
            return None
        theirs, ours = self._store.server_time(), self._clock.now()
        if abs(theirs - ours) > CLOCKS_APART_MAX:
            raise CloudMisconfigured(
                "set a lock", "", f"it is {ours:%Y-%m-%d} here and {theirs:%Y-%m-%d} at the bucket",
                "A lock's date can't be taken back, so nothing is sent until both agree: check "
                "this box's clock and NTP (timedatectl), then what stands between here and the "
                "bucket",
            )  # fmt: skip
        until = theirs + timedelta(seconds=self._retention_s)
        return Lock(self._mode, until.replace(microsecond=0))
