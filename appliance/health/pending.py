"""Whether what only exists here gets away: the age and the size of what is pending."""

from dataclasses import dataclass

from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.units import format_duration, format_size
from appliance.health.check import Findings, error, ok, warning

CONDITION = "pending"
OLD_S = 24 * 3600.0
VERY_OLD_S = 7 * 24 * 3600.0
LARGE_FRACTION = 0.5
VERY_LARGE_FRACTION = 0.8
_HINT = (
    "Until then the only copy is here: look at the problems of azekura status, "
    "and at cloud.throttle"
)


@dataclass(frozen=True, slots=True)
class Pending:
    """What has its only copy here. `oldest_us`: microseconds since 1970 UTC, 0 for nothing."""

    instances: int
    size_bytes: int
    oldest_us: int
    capacity_bytes: int


def check_pending(clock: Clock, pending: Pending) -> Findings:
    """Compare age and size of the backlog with what is sound."""
    if not pending.instances:
        return [ok(CONDITION, "everything is verified in the bucket")]
    age_s = max(0.0, (to_microseconds(clock.now()) - pending.oldest_us) / 1e6)
    sentence = (
        f"{pending.instances} instances, {format_size(pending.size_bytes)}, "
        f"the oldest for {format_duration(age_s)}"
    )
    part = pending.size_bytes / pending.capacity_bytes
    if age_s > VERY_OLD_S or part > VERY_LARGE_FRACTION:
        return [error(CONDITION, sentence, _HINT)]
    if age_s > OLD_S or part > LARGE_FRACTION:
        return [warning(CONDITION, sentence, _HINT)]
    return [ok(CONDITION, sentence)]
