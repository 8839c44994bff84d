"""Whether bytes were set aside: torn or damaged ones by recovery, whole packs by repair.

A damaged pack whose like is back, as the note beside it says, is only kept for a look.
"""

import json
import os

from appliance.foundation.units import format_size
from appliance.health.check import Findings, ok, warning

CONDITION = "set_aside"
_PACK, _NOTE = ".damaged.tar", ".damaged.json"


def check_set_aside(directory: str) -> Findings:
    """Count what was set aside and not replaced."""
    try:
        with os.scandir(directory) as entries:
            sizes = [
                entry.stat().st_size for entry in entries if entry.is_file() and _counts(entry.path)
            ]
    except FileNotFoundError:
        sizes = []
    if not sizes:
        return [ok(CONDITION, "nothing was set aside")]
    return [
        warning(
            CONDITION,
            f"{len(sizes)} files, {format_size(sum(sizes))}, lie in {directory}",
            "A torn tail after a power cut was never answered Success. Anything else is damage: "
            "run azekura verify and azekura study damaged, look at the disk, then move the files "
            "away",
        )
    ]


def _counts(path: str) -> bool:
    """Tell whether a file is no note, and no pack whose note says that its like is back."""
    if not path.endswith(_PACK):
        return not path.endswith(_NOTE)
    try:
        with open(path.removesuffix(_PACK) + _NOTE, encoding="utf-8") as file:
            return not json.load(file).get("replaced_at_us")
    except (OSError, ValueError):
        return True
