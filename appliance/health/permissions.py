"""Whether the credentials allow what the node needs: reading always, writing when asked to try."""

from collections.abc import Callable

from appliance.foundation.errors import CloudError, CloudUnavailable, ObjectMissing
from appliance.health.check import Findings, error, failed, ok
from appliance.remote.lock_probe import probe_lock
from appliance.remote.store import LockMode, ObjectStore

CONDITION = "bucket_permissions"
LOCK = "object_lock"
_NO_SUCH_KEY = "probe/no-such-object"
_A_DAY_S = 86400.0


def check_reading(store: ObjectStore) -> Findings:
    """List versions and uploads and look for a key that is not there; nothing is written."""

    def head() -> None:
        try:
            store.head(_NO_SUCH_KEY)
        except ObjectMissing:
            return

    attempts: tuple[Callable[[], object], ...] = (
        head,
        lambda: store.oldest_version(_NO_SUCH_KEY),
        lambda: next(iter(store.orphan_uploads(_A_DAY_S)), None),
    )
    found: Findings = []
    for attempt in attempts:
        try:
            attempt()
        except CloudUnavailable:
            return []  # the check of the bucket says so
        except CloudError as cause:
            found.append(failed(CONDITION, cause))
    return found or [ok(CONDITION, "the credentials may list and look")]


def check_writing(store: ObjectStore, mode: LockMode) -> Findings:
    """Put 19 bytes under `probe/`, locked for a day, and read the lock back.

    The object stays: a node has no right to delete.
    """
    probe = probe_lock(store, mode)
    if probe.trustworthy:
        return [ok(LOCK, f"a probe was stored and its {mode} lock read back")]
    return [
        error(
            LOCK,
            f"a probe was stored, but not as asked: {probe.detail}",
            "Look at the bucket's Object Lock; nothing may be evicted on its word",
        )
    ]
