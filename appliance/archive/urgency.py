"""Having the uplink take first what somebody waits for.

Leaves requests only; which pack goes in which lane is the uplink's.
"""

from collections.abc import Sequence

from appliance.archive.requests import Request, RequestBox
from appliance.index.view import View


def hurry(view: View, requests: RequestBox, sop_instance_uids: Sequence[str], by: str) -> None:
    """Ask for the studies of these instances to be verified before others; durable on return."""
    studies = {
        place.study_instance_uid
        for sop_instance_uid in sop_instance_uids
        for place in view.find_sop(sop_instance_uid)
    }
    for study_instance_uid in sorted(studies):
        requests.put(Request(kind="hurry", study_instance_uid=study_instance_uid, by=by))
