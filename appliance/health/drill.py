"""Whether the archive was restored lately, and whether what came back was right."""

from dataclasses import dataclass
from datetime import datetime

from appliance.foundation.clock import Clock
from appliance.foundation.units import format_duration
from appliance.health.check import Findings, error, ok, warning

CONDITION = "drill"
LATE_PART = 0.1
_FIX = "azekura drill"


@dataclass(frozen=True, slots=True)
class LastDrill:
    """The last restore drill: RFC 3339 time, instances that should come back and did, findings."""

    at: str
    identity: str
    instances: int
    matched: int
    findings: int


def check_drill(clock: Clock, every_s: float, since_at: str, last: LastDrill | None) -> Findings:
    """Judge the last drill. `since_at`: since when one could have been held, "" when it can't."""
    if last is not None and (last.findings or last.matched < last.instances):
        return [
            error(
                CONDITION,
                f"the drill of {last.at[:10]} found {last.findings}: {last.matched} of "
                f"{last.instances} instances came back as they were",
                "What a recovery would bring is not what was stored: hold another, look at the "
                "packs that it names, and at azekura verify --cloud",
                _FIX,
            )
        ]
    began = last.at if last is not None else since_at
    if not began:
        return [ok(CONDITION, "the node is new: no drill is due")]
    age_s = (clock.now() - datetime.fromisoformat(began)).total_seconds()
    if age_s > every_s * (1 + LATE_PART):
        return [
            warning(
                CONDITION,
                f"no restore drill for {format_duration(age_s)}",
                "An archive that was never restored is a hope: the uplink holds one by itself when "
                "the line allows it, else hold one by hand",
                _FIX,
            )
        ]
    if last is None:
        return [ok(CONDITION, "no drill was due yet")]
    return [
        ok(
            CONDITION,
            f"{format_duration(age_s)} ago {last.matched} instances came back as they were, "
            f"opened by {last.identity.partition(' ')[0]}'s key",
        )
    ]
