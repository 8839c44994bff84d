"""A standby that is added to a site with a history: checkpoints give it what it was not sealed."""

import os
import time
from pathlib import Path

from appliance.archive.checkpoint_name import CheckpointName
from appliance.remote.embedded import EmbeddedS3
from appliance.seal.age_header import header_length, unwrap_file_key
from appliance.seal.identity import load_identity
from tests.support.archive_box import sample
from tests.support.bucket_look import bucket_of, ledger_of
from tests.support.node import Node
from tests.support.node_status import WAIT_S, applied, status_of, wait_until
from tests.support.recording_sender import Sender, digests_of, fetch_all

OLD = [sample(1, number, 50_000) for number in range(3)] + [sample(2, 1, 9_000)]
NEW = [sample(3, number, 20_000) for number in range(2)]


def checkpoints_for(site: Node, reader: Node) -> list[CheckpointName]:
    """Return the site's checkpoints that a node's identity opens."""
    identities = load_identity(str(reader.folder / "node.key"))
    bucket = bucket_of(site)
    found = []
    for each in bucket.versions("checkpoints/"):
        head = bucket.get(each.key, each.version_id, 0, min(each.size_bytes, 4096))
        name = CheckpointName.parse(each.key)
        assert name is not None
        unwrap_file_key(head[: header_length(head)], identities)
        found.append(name)
    return found


def test_a_standby_added_later_serves_studies_that_were_never_sealed_to_it(
    tmp_path: Path, s3_server: EmbeddedS3, s3_bucket: str
) -> None:
    """Its recipient comes into the site's configuration, the site is started again, and that is
    all: it finds and serves the old studies by hash, and the new ones."""
    prefix = f"{tmp_path.name}-{os.getpid()}/"
    site = Node(tmp_path / "site", s3_server, s3_bucket, prefix)
    standby = Node(
        tmp_path / "standby", s3_server, s3_bucket, prefix, name="standby-1", role="standby",
        signers={"site-a": site.signer}, writes=False,
    )  # fmt: skip
    try:
        site.start()
        Sender(site.port, OLD).start().finish(60)
        site.drain()
        site.stop()
        before = len(ledger_of(site))
        assert checkpoints_for(site, standby) == []

        site.configure(recipients=[standby.recipient])
        site.start()
        end_s = time.monotonic() + WAIT_S
        while not (found := checkpoints_for(site, standby)):
            assert time.monotonic() < end_s, site.log("uplink")
            time.sleep(0.1)
        assert [name.range for name in found] == [(0, 1, before)]
        Sender(site.port, NEW).start().finish(60)
        site.drain()
        entries = list(ledger_of(site))
        written = max(entry.header.sequence for entry in entries)
        told = [record for entry in entries for record in entry.records]
        recipients = [each.recipients for each in told if hasattr(each, "recipients")]
        assert [standby.recipient in each for each in recipients] == [False, True]
        site.stop()

        standby.start()
        wait_until(standby, lambda found: applied(found, "site-a") >= written)
        assert fetch_all(standby.port, [*OLD, *NEW]) == digests_of([*OLD, *NEW])
        assert status_of(standby)["problems"] == []
    finally:
        standby.stop()
        site.stop()
