"""A real node with a damaged index: it receives and answers, and is whole again without hands."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydicom.data import get_testdata_file

from tests.support.node import Node, node  # noqa: F401
from tests.support.problems import wait_for_status, wait_until_solved

CT = str(get_testdata_file("CT_small.dcm", download=False))
CT_STUDY = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"
MR = str(get_testdata_file("MR_small.dcm", download=False))


def _generation(node: Node) -> Path:
    folder = node.data / "index"
    return folder / (folder / "current").read_text()


def _studies(node: Node) -> list[str]:
    """Return the availability that a query gives of each study it finds."""
    said = node.dcmtk(
        "findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID",
        "-k", "InstanceAvailability",
    )  # fmt: skip
    return [word for word in said.split() if word.strip("[]") in {"NEARLINE", "ONLINE"}]


@pytest.mark.timeout(300)
def test_a_node_with_a_damaged_index_receives_and_heals(node: Node) -> None:
    """Damaged while it stands still, then damaged under its feet."""
    node.start()
    node.dcmtk("storescu", CT)
    node.drain()
    node.azekura("study", "evict", CT_STUDY)
    node.stop()
    identity = node.folder / "node.key"
    (_generation(node) / "data.mdb").write_bytes(os.urandom(200_000))
    identity.rename(node.folder / "lost.key")
    node.start("receive")
    node.dcmtk("storescu", MR)
    wait_for_words(node, "being made anew")
    assert "node.key" in wait_for_words(node, "forward")["sentence"]
    assert [each.strip("[]") for each in _studies(node)] == ["ONLINE"]
    # The keys are back, and a start tries at once what would be tried again within minutes.
    (node.folder / "lost.key").rename(identity)
    node.stop()
    node.start()
    found = wait_until_solved(node, "index")
    assert (found["studies"], found["instances"]) == (2, 2)
    assert sorted(each.strip("[]") for each in _studies(node)) == ["NEARLINE", "ONLINE"]
    node.drain()
    names = [each.name for each in node.data.glob("index/damaged-*")]
    assert len(names) == 1
    (node.data / "index" / "incomplete.json").unlink()  # as if the last time were long ago
    healed = _generation(node)
    _flip(healed / "data.mdb", b"CompressedSamples^CT1")
    node.dcmtk("findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientName=Comp*",
               "-k", "StudyDescription", check=False)  # fmt: skip
    wait_for_status(node, lambda _: _generation(node) != healed)
    found = wait_until_solved(node, "index")
    assert found["studies"] == 2
    assert sorted(each.strip("[]") for each in _studies(node)) == ["NEARLINE", "ONLINE"]
    assert all(process.poll() is None for process in node.processes.values())
    assert node.status()["problems"] == []


def wait_for_words(node: Node, words: str) -> dict[str, str]:
    """Return the index's problem once it says these words: it is noted first, then acted on."""

    def said(found: dict[str, Any]) -> dict[str, str] | None:
        named = (each for each in found["problems"] if each["condition"] == "index")
        return next((each for each in named if words in each["sentence"]), None)

    problem: dict[str, str] = wait_for_status(node, said)
    return problem


def _flip(path: Path, near: bytes) -> None:
    content = path.read_bytes()
    at = content.find(near)
    assert at > 0
    with path.open("r+b") as file:
        while at > 0:
            file.seek(at + len(near) - 1)
            file.write(b"X")
            at = content.find(near, at + 1)
