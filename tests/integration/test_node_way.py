"""The main job, end to end: receive, keep, upload, evict, recall, answer. Real tools throughout."""

from pathlib import Path

from pydicom.data import get_testdata_file

from tests.support.node import Node, node  # noqa: F401

CT = str(get_testdata_file("CT_small.dcm", download=False))
CT_STUDY = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"


def _availability(node: Node) -> str:
    return node.dcmtk(
        "findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={CT_STUDY}",
        "-k", "InstanceAvailability",
    )  # fmt: skip


def test_a_study_goes_to_the_bucket_and_back(node: Node, tmp_path: Path) -> None:
    """Stored by storescu, verified, evicted, found as NEARLINE, fetched by getscu, ONLINE again."""
    node.start()
    node.dcmtk("storescu", CT)
    assert node.drain()["pending_instances"] == 0
    node.azekura("study", "evict", CT_STUDY)
    assert not list(node.data.glob("packs/*/*.tar"))
    assert "NEARLINE" in _availability(node)
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    node.dcmtk(
        "getscu", "+B", "-S", "-od", str(fetched), "-k", "QueryRetrieveLevel=STUDY",
        "-k", f"StudyInstanceUID={CT_STUDY}",
    )  # fmt: skip
    assert len(list(fetched.iterdir())) == 1
    node.azekura("study", "recall", CT_STUDY)
    assert "ONLINE" in _availability(node)
