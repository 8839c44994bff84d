"""Whether this box and the bucket agree on the time: requests are signed and locks set by it."""

from appliance.foundation.clock import Clock
from appliance.foundation.errors import CloudError, CloudUnavailable
from appliance.health.check import Findings, error, failed, ok, warning
from appliance.remote.store import ObjectStore

CONDITION = "clock"
WARNING_S = 60.0
ERROR_S = 300.0


def check_clock_skew(clock: Clock, store: ObjectStore) -> Findings:
    """Compare both clocks, to about a second; says nothing when the bucket gives no answer."""
    try:
        theirs = store.server_time()
    except CloudUnavailable:
        return []  # the check of the bucket says so
    except CloudError as cause:
        return [failed(CONDITION, cause)]
    skew_s = (clock.now() - theirs).total_seconds()
    sentence = f"this clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the "
    sentence += "bucket's"
    hint = "Set up NTP (timedatectl). Past 15 minutes the bucket refuses every request"
    if abs(skew_s) > ERROR_S:
        return [error(CONDITION, sentence, hint, "timedatectl set-ntp true")]
    if abs(skew_s) > WARNING_S:
        return [warning(CONDITION, sentence, hint, "timedatectl set-ntp true")]
    return [ok(CONDITION, f"within {max(1, round(abs(skew_s)))} s of the bucket's")]
