"""What `azekura status --json` says of a node, asked without starting a process for it."""

import time
from collections.abc import Callable
from typing import Any

from appliance.archive.status import node_status
from appliance.config.load import load
from appliance.daemons.parts import Parts
from tests.support.node import Node

WAIT_S = 90.0
LOOK_S = 0.1


def status_of(node: Node) -> dict[str, Any]:
    """Return the status document."""
    parts = Parts(load(str(node.config_path)))
    try:
        return node_status(parts.config, parts.layout, parts.index, parts.clock, parts.condition)
    finally:
        parts.close()


def wait_until(node: Node, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first status of which `wanted` is true."""
    end_s = time.monotonic() + WAIT_S
    while not wanted(found := status_of(node)):
        assert time.monotonic() < end_s, found
        time.sleep(LOOK_S)
    return found


def conditions(found: dict[str, Any]) -> set[str]:
    """Return the names of the problems that a status shows."""
    return {each["condition"] for each in found["problems"]}


def applied(found: dict[str, Any], name: str) -> int:
    """Return up to which entry a node has applied another's ledger; 0 when it does not follow."""
    for each in found["following"]:
        if each["node"] == name:
            return int(each["applied_sequence"])
    return 0
