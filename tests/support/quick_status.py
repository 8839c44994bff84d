"""What `azekura status --json` says of a running node, without starting a process for it."""

from typing import Any

from appliance.archive.status import node_status
from appliance.config.load import load
from appliance.daemons.parts import Parts
from tests.support.node import Node


def quick_status(node: Node) -> dict[str, Any]:
    """Return the document."""
    parts = Parts(load(str(node.config_path)))
    try:
        return node_status(parts.config, parts.layout, parts.index, parts.clock, parts.condition)
    finally:
        parts.close()
