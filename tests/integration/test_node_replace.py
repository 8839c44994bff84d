"""A node whose data directory is lost takes its own place again, by an explicit command."""

import json
import shutil
from pathlib import Path

from pydicom.data import get_testdata_file

from tests.support.node import Node, node  # noqa: F401
from tests.support.problems import wait_for_problem

CT = str(get_testdata_file("CT_small.dcm", download=False))
CT_STUDY = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"
MR = str(get_testdata_file("MR_small.dcm", download=False))


def test_a_lost_data_directory_is_replaced_by_command(node: Node, tmp_path: Path) -> None:
    """Until then it receives and uploads nothing; afterwards old and new studies are there."""
    node.start()
    node.dcmtk("storescu", CT)
    node.drain()
    before = node.status()["ledger_sequence"]
    node.stop()
    shutil.rmtree(node.data)

    node.start()
    node.dcmtk("storescu", MR)
    problem = wait_for_problem(node, "ledger")
    assert "azekura replace" in problem["hint"]
    assert node.azekura("replace", "--yes", check=False) == ""  # the uplink runs
    node.stop("uplink")
    assert node.azekura("replace", check=False) == ""  # nobody can be asked
    taken = json.loads(node.azekura("replace", "--yes", "--json"))
    assert (taken["sequence"], taken["studies"], taken["instances"]) == (before, 2, 2)

    node.start("uplink")
    found = node.drain()
    assert (found["studies"], found["pending_instances"]) == (2, 0)
    assert found["ledger_sequence"] > before
    assert node.status()["problems"] == []
    shown = node.json("study", "show", CT_STUDY)
    assert shown["state"] == "evicted"
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    node.dcmtk(
        "getscu", "+B", "-S", "-od", str(fetched), "-k", "QueryRetrieveLevel=STUDY",
        "-k", f"StudyInstanceUID={CT_STUDY}",
    )  # fmt: skip
    assert len(list(fetched.iterdir())) == 1
    assert "nothing to take over" in _after_stop(node, "replace")
    assert "the new index holds 2 studies, 2 instances" in node.azekura("rebuild-index")


def _after_stop(node: Node, *command: str) -> str:
    node.stop("uplink")
    return node.azekura(*command)
