"""A node whose bucket is unfit to be an archive: it says so, holds back, goes on by itself."""

import os
from pathlib import Path

from pydicom.data import get_testdata_file

from tests.support.node import Node
from tests.support.problems import wait_for_problem

CT = str(get_testdata_file("CT_small.dcm", download=False))


def test_a_bucket_that_is_missing_is_named_and_used_once_it_is_there(
    tmp_path: Path, s3_server
) -> None:  # fmt: skip
    """Receiving goes on meanwhile; nobody makes the bucket but its owner."""
    node = Node(tmp_path / "node", s3_server, f"late-{os.getpid()}", "")
    try:
        node.start()
        node.dcmtk("storescu", CT)
        found = wait_for_problem(node, "bucket")
        assert "NoSuchBucket" in found["sentence"]
        assert "held" in found["hint"]
        assert node.status()["pending_instances"] == 1
        s3_server.create_bucket(node.bucket)
        assert node.drain()["pending_instances"] == 0
        assert node.status()["problems"] == []
    finally:
        node.stop()
