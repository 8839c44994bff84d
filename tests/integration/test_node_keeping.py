"""Terms, holds and erasure with real processes and a real S3 server that enforces the locks."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.archive.expiry import terms
from appliance.archive.records import Erased, Held, Retained
from appliance.archive.requests import Request, RequestBox
from appliance.archive.retention import Retention
from appliance.foundation.clock import SystemClock, to_microseconds
from appliance.foundation.errors import CloudRefused, ObjectMissing
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.remote.s3 import S3Store
from tests.support.archive_box import DAY_S, Box, sample
from tests.support.bucket import Bucket
from tests.support.keeping import received
from tests.support.node import Node, node  # noqa: F401
from tests.support.s3_fixture import unlimited
from tests.support.services import wait_for

GONE, KEPT, GROWN = (sample(number, 1).study for number in (1, 2, 3))
SHORT_S = 4.0


def receive(box: Box, study: int, number: int, locked_s: float) -> str:
    """Have an instance verified in a pack that is locked for so long; return the pack's id."""
    box.retention._retention_s = locked_s
    (pack_id,) = received(box, sample(study, number))
    return pack_id


@pytest.fixture
def site(node: Node) -> Box:
    """What a node has received before its daemons start, with locks of its own lengths."""
    settings = node.server.settings(node.bucket, prefix=node.prefix)
    store = S3Store(settings, unlimited(), SystemClock())
    box = Box(node.folder, store, clock=SystemClock())
    assert isinstance(box.retention, Retention)
    return box


class Looking:
    """The node's index, read in this process: a command for each look would take its time."""

    def __init__(self, node: Node) -> None:
        self.index = Index(FileSystem(), str(node.data / "index")).open()

    def expired(self) -> set[str]:
        """Return the studies that have expired."""
        now_us = to_microseconds(SystemClock().now())
        found = terms(self.index, DAY_S)
        return {term.study_instance_uid for term in found if term.expired(now_us)}

    def studies(self) -> set[str]:
        """Return the studies that are served."""
        with self.index.read() as view:
            uids = {uid for row in view.packs() for uid in row.study_instance_uids}
            assert view.counts().studies == len(uids)
        return uids


@pytest.fixture
def looking(node: Node, site: Box) -> Iterator[Looking]:
    found = Looking(node)
    yield found
    found.index.close()


def ask(node: Node, kind: str) -> None:
    """Have the uplink carry out a request, as `azekura study hold` does."""
    box = RequestBox(FileSystem(), str(node.data / "state" / "requests"))
    answer = box.wait(box.put(Request(kind, GONE, by="suzuki", reason="case 7")), 60)
    assert answer.done, answer


@pytest.mark.timeout(300)
def test_what_has_expired_goes_by_plan_and_nothing_else(
    node: Node, site: Box, looking: Looking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held: refused. By plan, hash and key: gone from bucket, disk and index, certified."""
    (gone, kept) = receive(site, 1, 1, SHORT_S), receive(site, 2, 1, DAY_S)
    old, new = receive(site, 3, 1, DAY_S), receive(site, 3, 2, 40 * DAY_S)
    clouds = {each: site.pack(each).cloud for each in (gone, kept, old, new)}
    site.close()
    bucket = Bucket(node)
    node.start("uplink")
    wait_for(lambda: looking.expired() == {GONE})

    # A study that went on keeps its older pack as long.
    wait_for(lambda: any(isinstance(each, Retained) for each in bucket.records()))
    locks = [bucket.store.head(clouds[each].key).lock for each in (old, new)]
    assert locks[0] == locks[1]

    plan = str(tmp_path / "plan.json")
    made = node.json("expire", "plan", "--out", plan, GONE)
    assert (made["studies"], made["packs"]) == (1, 1)
    credentials = node.server.credentials
    assert credentials is not None
    monkeypatch.setenv("AZEKURA_ADMIN_ACCESS_KEY_ID", credentials.access_key_id)
    monkeypatch.setenv("AZEKURA_ADMIN_SECRET_ACCESS_KEY", credentials.secret_access_key)
    run = ("expire", "run", plan, "--confirm", made["sha256"])
    ask(node, "hold")
    wait_for(lambda: bucket.store.head(clouds[gone].key).legal_hold)
    assert looking.expired() == set()
    assert node.azekura(*run, check=False) == ""
    with pytest.raises(CloudRefused):
        bucket.store.delete_version(clouds[gone].key, clouds[gone].version_id)
    ask(node, "release")
    wait_for(lambda: not bucket.store.head(clouds[gone].key).legal_hold)

    certificate = node.json(*run)
    assert certificate["complete"]
    assert [study["study_instance_uid"] for study in certificate["studies"]] == [GONE]
    assert certificate["access_key_id"] == credentials.access_key_id
    written = Path(plan + ".certificate.json").read_bytes().splitlines()[0]
    assert json.loads(written) == certificate
    with pytest.raises(ObjectMissing):
        bucket.store.head(clouds[gone].key, clouds[gone].version_id)
    with pytest.raises(CloudRefused):
        bucket.store.delete_version(clouds[kept].key, clouds[kept].version_id)
    assert looking.studies() == {KEPT, GROWN}
    assert not (node.data / "packs" / "sealed" / f"{gone}.tar").exists()
    assert (node.data / "packs" / "sealed" / f"{kept}.tar").exists()
    records = bucket.records()
    assert [each.on for each in records if isinstance(each, Held)] == [True, False]
    assert [each.pack_id for each in records if isinstance(each, Erased)] == [gone]
    report = node.json("retention", "--cloud")
    assert (len(report["studies"]), report["shortened"]) == (2, [])
    assert node.status()["problems"] == []
