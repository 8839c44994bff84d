"""Whether the bucket is there, in its region, versioned and able to lock, and lets us in."""

from appliance.foundation.errors import CloudError, CloudRefused, CloudUnavailable
from appliance.health.check import Findings, error, failed, ok
from appliance.remote.store import ObjectStore

CONDITION = "bucket"
CREDENTIALS = "bucket_credentials"
LINE = "bucket_line"
_NO_LOCK = "no_object_lock"


def check_bucket(store: ObjectStore, *, needs_lock: bool) -> Findings:
    """Ask the bucket what it is; `needs_lock` is false where the configuration wants no lock."""
    try:
        wrong = store.check_bucket()
    except CloudRefused as cause:
        return [failed(CREDENTIALS, cause)]
    except CloudUnavailable as cause:
        found = failed(LINE, cause)
        return [
            error(
                LINE,
                found.sentence,
                f"{found.hint or 'Check the WAN line'}. Receiving, queries and the cache go on",
            )
        ]
    except CloudError as cause:
        return [failed(CONDITION, cause)]
    found_all = [
        error(f"bucket_{each.condition.removeprefix('bucket_')}", each.detail, each.hint)
        for each in wrong
        if needs_lock or each.condition != _NO_LOCK
    ]
    lock = ", with Object Lock" if needs_lock else ""
    return found_all or [ok(CONDITION, f"it is there, versioned{lock}")]
