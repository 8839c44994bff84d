"""`azekura doctor` on a real node: running, and with its parts gone."""

import json
import time
from typing import Any

from tests.support.node import Node, node  # noqa: F401

LIMIT_S = 20.0


def doctor(node: Node, *options: str) -> dict[str, dict[str, Any]]:
    """Run it; return the findings by condition."""
    began_s = time.monotonic()
    said = node.azekura("doctor", "--json", *options, check=False)
    assert time.monotonic() - began_s < LIMIT_S
    return {each["condition"]: each for each in json.loads(said)}


def errors(found: dict[str, dict[str, Any]]) -> set[str]:
    return {condition for condition, each in found.items() if each["severity"] == "error"}


def wait_for_uplink(node: Node) -> None:
    """Wait until the uplink has said something of itself."""
    end_s = time.monotonic() + 60
    while not (node.data / "state" / "uplink-status.json").exists():
        assert time.monotonic() < end_s, node.log("uplink")
        time.sleep(0.05)


def test_doctor_says_what_is_well_and_what_is_not(node: Node) -> None:
    """Every part is looked at, and each that is gone is named, alone."""
    node.start()
    wait_for_uplink(node)
    running = doctor(node, "--probe")
    assert errors(running) == set(), running
    assert {"receive", "indexer", "uplink", "uplink_status", "index", "disk_space"} <= set(running)
    assert "answers C-ECHO" in running["dicom_port"]["sentence"]
    assert "lock read back" in running["object_lock"]["sentence"]

    node.stop("uplink")
    (node.folder / "signing.pem").chmod(0o644)
    node.configure(endpoint="http://127.0.0.1:9")
    broken = doctor(node)
    assert {"uplink", "signing_key", "bucket_line"} <= errors(broken)
    assert errors(broken) <= {"uplink", "uplink_status", "signing_key", "bucket_line"}
    assert broken["signing_key"]["fix"] == f"chmod 600 {node.folder}/signing.pem"
    assert broken["dicom_port"]["severity"] == "ok"
