"""Packs that break under a running node: readers notice nothing, the uplink puts it right."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.archive_box import Sample, sample
from tests.support.bucket_look import packs_in_bucket, packs_in_ledger
from tests.support.node import Node, node  # noqa: F401
from tests.support.quick_status import quick_status
from tests.support.recording_sender import Sender, digests_of, fetch, fetch_all
from tests.support.s3_fixture import s3_bucket, s3_server  # noqa: F401

SETTLES_WITHIN_S = 90.0
CACHED = [sample(1, number, 50_000) for number in range(4)]
PENDING = [sample(2, number, 50_000) for number in range(4)]


def _until(what: Callable[[], bool]) -> None:
    end_s = time.monotonic() + SETTLES_WITHIN_S
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.3)


def _pack_of(node: Node, each: Sample) -> Path:
    """Return the closed or sealed pack that holds an instance."""
    found: list[Path] = []

    def look() -> bool:
        for place in ("sealed", "closed"):
            for path in (node.data / "packs" / place).glob("*.tar"):
                found.extend([path] if each.dataset[-50:] in path.read_bytes() else [])
        return bool(found)

    _until(look)
    return found[0]


def _damage(node: Node, each: Sample) -> None:
    path = _pack_of(node, each)
    raw = bytearray(path.read_bytes())
    raw[raw.index(each.dataset[-50:])] ^= 1
    with open(path, "r+b") as file:
        file.write(raw)


def _conditions(node: Node) -> set[str]:
    return {each["condition"] for each in quick_status(node)["problems"]}


@pytest.mark.timeout(300)
def test_damaged_packs_are_put_right(node: Node) -> None:
    """A cached one is served, set aside and refilled; of a pending one the good instances reach the
    bucket, and the bad one is named until the modality has sent it again."""
    node.start()
    Sender(node.port, CACHED).start().finish(60)
    node.drain()
    _damage(node, CACHED[1])
    assert fetch_all(node.port, CACHED) == digests_of(CACHED)
    _until(lambda: quick_status(node)["repair"].get("refilled") == 1)
    assert fetch_all(node.port, CACHED) == digests_of(CACHED)
    aside = node.data / "packs" / "set-aside"
    assert len(list(aside.glob("*.damaged.tar"))) == 1

    node.stop("uplink")  # what comes now stays pending
    Sender(node.port, PENDING).start().finish(60)
    _damage(node, PENDING[2])
    failed = fetch(node.port, PENDING[2].study)
    assert len(failed.digests) == len(PENDING) - 1
    node.start("uplink")
    _until(lambda: len(node.json("study", "damaged", check=False)) == 1)
    (named,) = node.json("study", "damaged", check=False)
    assert named["sop_instance_uid"] == PENDING[2].sop_instance_uid
    assert named["address"] == "127.0.0.1"
    assert "damaged" in _conditions(node)
    Sender(node.port, [PENDING[2]]).start().finish(60)
    node.drain()
    _until(lambda: _conditions(node) == set())
    assert fetch_all(node.port, PENDING) == digests_of(PENDING)
    assert len(list(aside.glob("*.damaged.tar"))) == 2
    assert sorted(packs_in_ledger(node)) == packs_in_bucket(node)
    for name in ("receive", "uplink"):
        assert PENDING[2].study not in node.log(name), name
    assert os.listdir(node.data / "packs" / "recalled") == []
