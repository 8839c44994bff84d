"""A standby beside an appliance, real processes on one bucket: it knows, serves and warns.

The tests go in order over one pair: the last one leaves the site's ledger blocked.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from appliance.archive.ledger_entry import entry_key
from appliance.archive.records import Opened
from appliance.archive.requests import Request, RequestBox
from appliance.foundation.files import FileSystem
from appliance.remote.embedded import EmbeddedS3
from appliance.seal.signing import SigningKey
from tests.support.archive_box import sample
from tests.support.bucket_look import bucket_of
from tests.support.made_ledger import MadeLedger, put_object
from tests.support.node import Node
from tests.support.node_status import applied, conditions, status_of, wait_until
from tests.support.recording_sender import Sender, digests_of, fetch, fetch_all
from tests.support.web_client import AS_STORED, WebClient, dataset_of_part, multipart

OLD = [sample(1, number, 50_000) for number in range(4)] + [sample(2, 1, 9_000)]
NEW = [sample(3, number, 50_000) for number in range(3)]
LAST = [sample(4, number, 50_000) for number in range(2)]


class Pair(NamedTuple):
    """An appliance, and a standby with an empty disk that follows it."""

    site: Node
    standby: Node

    def knows(self, count: int) -> None:
        """Wait until the standby knows so many instances."""
        wait_until(self.standby, lambda found: found["instances"] == count)


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, s3_server: EmbeddedS3, s3_bucket: str
) -> Iterator[Pair]:
    """Both nodes; the site runs, the standby has never been started."""
    folder = tmp_path_factory.mktemp("pair")
    prefix = f"pair-{os.getpid()}/"
    site = Node(folder / "site", s3_server, s3_bucket, prefix)
    standby = Node(
        folder / "standby", s3_server, s3_bucket, prefix, name="standby-1", role="standby",
        signers={"site-a": site.signer}, writes=False,
    )  # fmt: skip
    site.configure(recipients=[standby.recipient])
    site.start()
    yield Pair(site, standby)
    standby.stop()
    site.stop()


def test_a_standby_with_an_empty_disk_serves_what_the_site_wrote(pair: Pair) -> None:
    """Bucket, identity and the site's public key are all it has. What comes later it knows within
    seconds; what it evicts it serves again; its index is made anew from what it has."""
    Sender(pair.site.port, OLD).start().finish(60)
    pair.standby.start("receive", "uplink", "web")
    pair.knows(len(OLD))
    assert fetch_all(pair.standby.port, OLD) == digests_of(OLD)
    _serves_dicomweb(pair.standby)

    Sender(pair.site.port, NEW).start().finish(60)
    pair.knows(len(OLD) + len(NEW))
    assert NEW[0].study in pair.standby.dcmtk(
        "findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID"
    )
    assert fetch_all(pair.standby.port, NEW) == digests_of(NEW)
    box = RequestBox(FileSystem(), str(pair.standby.data / "state" / "requests"))
    asked = box.put(Request(kind="evict", study_instance_uid=NEW[0].study))
    assert box.wait(asked, 60).done
    assert fetch(pair.standby.port, NEW[0].study).digests == digests_of(NEW)

    pair.standby.azekura("rebuild-index")
    assert fetch_all(pair.standby.port, OLD) == digests_of(OLD)
    found = wait_until(pair.standby, lambda found: found["problems"] == [])
    assert (found["role"], found["pending_instances"]) == ("standby", 0)
    keys = {each.key for each in bucket_of(pair.site).objects()}
    assert not [key for key in keys if key.startswith("ledger/standby-1/")]


def _serves_dicomweb(standby: Node) -> None:
    """It searches, gives metadata and instances from the bucket, and takes no study."""
    client = WebClient(standby, "read,store")
    study = OLD[0].study
    (row,) = client.json(f"studies?StudyInstanceUID={study}")
    assert row["00201208"]["Value"] == [4]
    assert len(client.json(f"studies/{study}/metadata")) == 4
    parts = client.parts(f"studies/{study}", AS_STORED)
    found = {hashlib.sha256(dataset_of_part(body)).digest() for _, body in parts}
    assert found == {each.sha256 for each in OLD if each.study == study}
    assert client.store(multipart([parts[0][1]])).status_code == 503


def test_a_stolen_cloud_key_that_writes_the_next_entry_is_seen_by_both(pair: Pair) -> None:
    """The site says that somebody else writes and goes on receiving; the standby names the entry,
    applies nothing of it and goes on serving."""
    following = len(list(bucket_of(pair.site).objects("ledger/site-a/"))) + 1
    thief = MadeLedger(
        "site-a", SigningKey.create(str(pair.site.folder / "thief.pem")),
        [pair.site.recipient, pair.standby.recipient],
    )  # fmt: skip
    forged = thief.build([Opened("0" * 32, "azekura", "2026")], sequence=following)
    put_object(bucket_of(pair.site), entry_key("site-a", following), thief.seal(forged))

    found = wait_until(pair.standby, lambda found: "ledger_forged" in conditions(found))
    assert applied(found, "site-a") == following - 1
    assert fetch_all(pair.standby.port, OLD) == digests_of(OLD)

    Sender(pair.site.port, LAST).start().finish(60)
    found = wait_until(pair.site, lambda found: "ledger" in conditions(found))
    (problem,) = [each for each in found["problems"] if each["condition"] == "ledger"]
    assert "did not write" in problem["sentence"]
    assert fetch_all(pair.site.port, LAST) == digests_of(LAST)
    assert status_of(pair.site)["pending_instances"] == len(LAST)
