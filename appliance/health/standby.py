"""Whether a standby could take its sites' place now: whom it hears, how far it follows."""

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.health.check import Findings, ok, warning

CONDITION = "standby"
BEHIND_ENTRIES_MAX = 100


def check_standby(
    nodes: Sequence[Mapping[str, Any]],
    following: Sequence[Mapping[str, Any]],
    refusal: str | None,
    accept_stores: str,
) -> Findings:
    """Look at what the node knows of those that it follows.

    nodes, following: as in `status --json`. refusal: why it takes no studies now, None when it
    does. A standby that was never started knows nobody.
    """
    if not nodes:
        return [
            warning(
                CONDITION,
                "nothing is known of any site yet",
                "Start azekura uplink; a minute later look again",
            )
        ]
    found: Findings = []
    stores = "it takes new studies" if refusal is None else f"it takes no new studies: {refusal}"
    for node in nodes:
        name, state = node["node"], node["state"]
        if state == "unknown":
            found.append(
                warning(
                    CONDITION,
                    f"nothing is heard of {name}",
                    "Its uplink has never run, or is older than this one; or keys.signers has "
                    "another key than it signs with: compare `azekura key list` there",
                )
            )
        elif state == "silent":
            hint = "standby.accept_stores = 'when-silent' lets it take them"
            found.append(
                warning(
                    CONDITION,
                    f"{name} is silent since {node['since']}, and {stores}",
                    hint
                    if accept_stores == "never"
                    else "The runbook is docs/operations/disaster.md",
                )
            )
    for each in following:
        behind = each["last_sequence"] - each["applied_sequence"]
        if behind > BEHIND_ENTRIES_MAX:
            found.append(
                warning(
                    CONDITION,
                    f"{behind} entries of the ledger of {each['node']} are still to come",
                    "What they name is not found yet; see the lines of the uplink if it stays so",
                )
            )
    names = ", ".join(node["node"] for node in nodes)
    return found or [ok(CONDITION, f"it could take the place of {names}; {stores}")]
