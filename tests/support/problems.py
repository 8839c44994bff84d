"""Waiting for what a node's status says."""

import time
from typing import Any

from tests.support.node import Node

WAIT_S = 60.0


def wait_for_problem(node: Node, condition: str) -> dict[str, str]:
    """Return the problem of that condition, once status shows it."""
    return wait_for_status(node, lambda found: _named(found, condition))


def wait_until_solved(node: Node, condition: str) -> dict[str, Any]:
    """Return the status, once it no longer shows a problem of that condition."""
    return wait_for_status(node, lambda found: None if _named(found, condition) else found)


def wait_for_status(node: Node, wanted) -> Any:
    """Return what `wanted` makes of the status, once it makes something."""
    end_s = time.monotonic() + WAIT_S
    while True:
        found = node.status()
        answer = wanted(found)
        if answer:
            return answer
        assert time.monotonic() < end_s, found
        time.sleep(0.2)


def _named(found: dict[str, Any], condition: str) -> dict[str, str] | None:
    return next((each for each in found["problems"] if each["condition"] == condition), None)
