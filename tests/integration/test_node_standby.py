"""A standby beside an appliance, real processes on one bucket: it knows, serves and warns."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from appliance.archive.ledger_entry import entry_key
from appliance.archive.records import Opened
from appliance.remote.embedded import EmbeddedS3
from appliance.seal.signing import SigningKey
from tests.support.archive_box import sample
from tests.support.bucket_look import bucket_of
from tests.support.made_ledger import MadeLedger, put_object
from tests.support.node import Node
from tests.support.node_status import applied, conditions, status_of, wait_until
from tests.support.recording_sender import Sender, digests_of, fetch, fetch_all

OLD = [sample(1, number, 50_000) for number in range(4)] + [sample(2, 1, 9_000)]
NEW = [sample(3, number, 50_000) for number in range(3)]


class Pair(NamedTuple):
    """An appliance, and a standby with an empty disk that follows it."""

    site: Node
    standby: Node

    def caught_up(self) -> None:
        """Wait until the standby has applied what the site has written."""
        written = status_of(self.site)["ledger_sequence"]
        wait_until(self.standby, lambda found: applied(found, "site-a") >= written)


@pytest.fixture
def pair(tmp_path: Path, s3_server: EmbeddedS3, s3_bucket: str) -> Iterator[Pair]:
    """Both nodes, not started."""
    prefix = f"{tmp_path.name}-{os.getpid()}/"
    site = Node(tmp_path / "site", s3_server, s3_bucket, prefix)
    standby = Node(
        tmp_path / "standby", s3_server, s3_bucket, prefix, name="standby-1", role="standby",
        signers={"site-a": site.signer}, writes=False,
    )  # fmt: skip
    site.configure(recipients=[standby.recipient])
    yield Pair(site, standby)
    standby.stop()
    site.stop()


def test_a_standby_with_an_empty_disk_serves_what_the_site_wrote(pair: Pair) -> None:
    """Bucket, identity and the site's public key are all it has. What comes later is there within
    seconds; the site's end changes nothing; what it evicts it serves again."""
    pair.site.start()
    Sender(pair.site.port, OLD).start().finish(60)
    pair.site.drain()
    pair.standby.start()
    pair.caught_up()
    assert pair.standby.azekura("study", "list").count("1.2.826.0.1.3680043.8.498.") == 2
    assert fetch_all(pair.standby.port, OLD) == digests_of(OLD)

    Sender(pair.site.port, NEW).start().finish(60)
    pair.site.drain()
    pair.caught_up()
    pair.site.stop()
    assert "1.2.826.0.1.3680043.8.498.3" in pair.standby.dcmtk(
        "findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID"
    )
    assert fetch_all(pair.standby.port, NEW) == digests_of(NEW)
    pair.standby.azekura("study", "evict", NEW[0].study)
    assert fetch(pair.standby.port, NEW[0].study).digests == digests_of(NEW)
    pair.standby.azekura("rebuild-index")
    assert fetch_all(pair.standby.port, OLD) == digests_of(OLD)
    found = status_of(pair.standby)
    assert (found["role"], found["pending_instances"]) == ("standby", 0)
    assert found["problems"] == []
    keys = {each.key for each in bucket_of(pair.site).objects()}
    assert not [key for key in keys if key.startswith("ledger/standby-1/")]


def test_a_stolen_cloud_key_that_writes_the_next_entry_is_seen_by_both(pair: Pair) -> None:
    """The site says that somebody else writes and goes on receiving; the standby names the entry,
    applies nothing of it and goes on serving."""
    pair.site.start()
    Sender(pair.site.port, OLD).start().finish(60)
    following = pair.site.drain()["ledger_sequence"] + 1
    thief = MadeLedger(
        "site-a", SigningKey.create(str(pair.site.folder / "thief.pem")),
        [pair.site.recipient, pair.standby.recipient],
    )  # fmt: skip
    forged = thief.build([Opened("0" * 32, "azekura", "2026")], sequence=following)
    put_object(bucket_of(pair.site), entry_key("site-a", following), thief.seal(forged))

    pair.standby.start()
    found = wait_until(pair.standby, lambda found: "ledger_forged" in conditions(found))
    assert applied(found, "site-a") == following - 1
    assert fetch_all(pair.standby.port, OLD) == digests_of(OLD)

    Sender(pair.site.port, NEW).start().finish(60)
    found = wait_until(pair.site, lambda found: "ledger" in conditions(found))
    (problem,) = [each for each in found["problems"] if each["condition"] == "ledger"]
    assert "did not write" in problem["sentence"]
    assert fetch_all(pair.site.port, NEW) == digests_of(NEW)
    assert status_of(pair.site)["pending_instances"] == len(NEW)
