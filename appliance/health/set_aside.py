"""Whether recovery had to set bytes aside: what was damaged or torn and belongs to no member."""

import os

from appliance.foundation.units import format_size
from appliance.health.check import Findings, ok, warning

CONDITION = "set_aside"


def check_set_aside(directory: str) -> Findings:
    """Count the files that recovery left."""
    try:
        with os.scandir(directory) as entries:
            sizes = [entry.stat().st_size for entry in entries if entry.is_file()]
    except FileNotFoundError:
        sizes = []
    if not sizes:
        return [ok(CONDITION, "nothing was set aside")]
    return [
        warning(
            CONDITION,
            f"{len(sizes)} files, {format_size(sum(sizes))}, lie in {directory}",
            "A torn tail after a power cut was never answered Success. Anything else is damage: "
            "run azekura verify, look at the disk, then move the files away",
        )
    ]
