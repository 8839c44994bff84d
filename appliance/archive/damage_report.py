"""How whoever reads a pack tells the uplink that it is damaged: a durable request, once at a time.

Must not keep anybody from reading: a disk that takes no request is logged, and that is all.
"""

from collections.abc import Callable

from appliance.archive.requests import Request, RequestBox
from appliance.foundation import log
from appliance.foundation.errors import AzekuraError, Unreadable

DAMAGED = "damaged"
UNREADABLE = "unreadable"
GONE = "gone"
CLOUD = "cloud"
"""The copy in the bucket is damaged, missing or archived."""

Report = Callable[[str, str], None]
"""Called with a pack id and one of the words above."""

_log = log.get("damage")


def reporter(requests: RequestBox, by: str) -> Report:
    """Return what leaves a `repair` request; `by` says who found it: read, index, verify."""

    def report(pack_id: str, why: str) -> None:
        name = f"repair-{'cloud' if why == CLOUD else 'disk'}-{pack_id}"
        try:
            requests.put_unless_waiting(
                Request(kind="repair", pack_id=pack_id, reason=why, by=by), name
            )
        except AzekuraError as error:
            _log.error("repair_not_asked", pack=pack_id, error=type(error).__name__)

    return report


def why_of(error: Exception) -> str:
    """Return the word for what reading gave."""
    return UNREADABLE if isinstance(error, Unreadable | OSError) else DAMAGED
