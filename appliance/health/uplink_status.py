"""What the uplink last said of itself, and how long ago."""

from collections.abc import Mapping, Sequence

from appliance.foundation.clock import Clock
from appliance.foundation.units import format_duration
from appliance.health.check import Findings, error, ok, warning

CONDITION = "uplink_status"
STALE_S = 10.0


def check_uplink_status(
    clock: Clock, said_at_s: float | None, link: str, problems: Sequence[Mapping[str, str]]
) -> Findings:
    """Look at the uplink's last word.

    `said_at_s` is seconds since 1970 UTC, None when it never said anything; `problems` have
    `condition`, `sentence` and `hint`, and each becomes a finding while the word is fresh.
    """
    if said_at_s is None:
        return [error(CONDITION, "the uplink never said anything", "Start azekura uplink")]
    age_s = clock.now().timestamp() - said_at_s
    if age_s > STALE_S:
        return [
            error(
                CONDITION,
                f"the uplink last said something {format_duration(age_s)} ago",
                "It does not run, or hangs: look at its log; restarting it loses nothing",
            )
        ]
    found = [
        error(f"uplink_{each['condition'].partition(':')[0]}", each["sentence"], each["hint"])
        for each in problems
    ]
    if link == "down":
        found.append(error(CONDITION, "the line to the bucket is down", "Check the WAN line"))
    elif link == "degraded":
        found.append(
            warning(CONDITION, "the line to the bucket loses requests", "Check the WAN line")
        )
    return found or [ok(CONDITION, f"the uplink works, link {link}")]
