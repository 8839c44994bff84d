"""Whether the bucket's lock is enforced: tried, not believed.

Owns: the probe under `probe/`. Must not: touch any other key.

Invariants:
- What is put here is locked for one day, test traffic that no list shows.
- "Enforced" needs a witness: a second credential, which proves on an unlocked version that it may
  delete, and is then refused the locked one. A refusal alone proves only a lack of rights.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from appliance.foundation.errors import CloudRefused
from appliance.remote.store import Lane, Lock, LockMode, ObjectStore

PROBE_PREFIX = "probe/"
PROBE_LOCK = timedelta(days=1)
_BODY = b"azekura lock probe\n"

Verdict = Literal["enforced", "carried", "not_carried", "not_enforced", "unproved"]


@dataclass(frozen=True, slots=True)
class LockProbe:
    """What a probe found.

    `enforced`: the lock was read back and a deletion refused. `carried`: read back, deletion not
    tried. `not_carried`: the version came back without the lock. `not_enforced`: a locked version
    could be deleted. `unproved`: the second credential can't delete even what is not locked.
    """

    verdict: Verdict
    detail: str
    at: datetime

    @property
    def trustworthy(self) -> bool:
        """Whether nothing speaks against the lock."""
        return self.verdict in ("enforced", "carried")


def probe_lock(store: ObjectStore, mode: LockMode, deleter: ObjectStore | None = None) -> LockProbe:
    """Put a version locked for a day, read the lock back, and let `deleter` try to delete it.

    `deleter` is the same bucket and prefix under a credential that may delete versions under
    `probe/` and nothing else. CloudError when the bucket can't be asked.
    """
    now = store.server_time()
    lock = Lock(mode, (now + PROBE_LOCK).replace(microsecond=0))
    key = f"{PROBE_PREFIX}lock-{secrets.token_hex(8)}"
    digest = hashlib.sha256(_BODY).digest()
    version_id = store.put(key, _BODY, sha256=digest, lock=lock, lane=Lane.BACKFILL).version_id
    found = store.head(key, version_id).lock
    if found is None or found.mode != mode or found.until < lock.until:
        return LockProbe("not_carried", f"asked for {lock}, found {found}", now)
    if deleter is None:
        return LockProbe("carried", "deletion was not tried: no second credential", now)
    free_key = f"{PROBE_PREFIX}free-{secrets.token_hex(8)}"
    free_version_id = store.put(free_key, _BODY, sha256=digest, lane=Lane.BACKFILL).version_id
    try:
        deleter.delete_version(free_key, free_version_id)
    except CloudRefused as refusal:
        return LockProbe(
            "unproved", f"the second credential may not delete under probe/: {refusal.cause}", now
        )
    try:
        deleter.delete_version(key, version_id)
    except CloudRefused as refusal:
        return LockProbe("enforced", refusal.cause, now)
    return LockProbe("not_enforced", "a locked version could be deleted", now)
