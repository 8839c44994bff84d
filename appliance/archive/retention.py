"""Until when an object is locked: by the bucket's own clock, never by a bucket default."""

from datetime import timedelta

from appliance.remote.store import Lock, LockMode, ObjectStore

_MODES: dict[str, LockMode | None] = {
    "compliance": "COMPLIANCE",
    "governance": "GOVERNANCE",
    "off": None,
}


class Retention:
    """The lock that a new object gets. With mode `off` there is none."""

    def __init__(self, store: ObjectStore, mode: str, retention_s: float) -> None:
        self._store = store
        self._mode: LockMode | None = _MODES[mode]
        self._retention_s = retention_s

    def lock(self) -> Lock | None:
        """Return the lock from now on; asks the bucket for its time, so CloudError may come."""
        if self._mode is None:
            return None
        until = self._store.server_time() + timedelta(seconds=self._retention_s)
        return Lock(self._mode, until.replace(microsecond=0))
