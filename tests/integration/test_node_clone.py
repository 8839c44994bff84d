"""A box that was cloned, disk and keys: two nodes of one name on one bucket, in real processes."""

import shutil

from appliance.archive.heartbeat import beat_key, open_beat
from tests.support.archive_box import sample
from tests.support.bucket_look import bucket_of, ledger_of
from tests.support.node import Node, node  # noqa: F401
from tests.support.node_status import conditions, status_of, wait_until
from tests.support.recording_sender import Sender, digests_of, fetch_all

FIRST = [sample(1, number, 9_000) for number in range(3)]
AT_CLONE = [sample(3, number, 9_000) for number in range(3)]


def clone_of(node: Node) -> Node:
    """Return a box with the node's keys and a copy of its disk, on ports of its own."""
    clone = Node(node.folder.parent / "clone", node.server, node.bucket, node.prefix)
    for name in ("node.key", "signing.pem", "recovery.key"):
        shutil.copyfile(node.folder / name, clone.folder / name)
    shutil.copytree(node.data, clone.data)
    clone.configure()
    return clone


def test_a_cloned_box_stops_uploading_with_one_alarm(node: Node) -> None:
    """It forks no ledger and says one thing; it receives and serves; the original notices nothing,
    and the heartbeat is the original's."""
    node.start()
    Sender(node.port, FIRST).start().finish(120)
    written = node.drain()["ledger_sequence"]
    node.stop()
    clone = clone_of(node)
    node.start("uplink")
    try:
        wait_until(node, lambda found: found["ledger_sequence"] > written)
        before = [entry.header_sha256 for entry in ledger_of(node)]
        clone.start()
        found = wait_until(clone, lambda found: "ledger" in conditions(found))
        (problem,) = found["problems"]
        assert "an entry that this box did not write" in problem["sentence"]
        Sender(clone.port, AT_CLONE).start().finish(120)
        wait_until(clone, lambda found: found["pending_instances"] == len(AT_CLONE))
        assert fetch_all(clone.port, [*FIRST, *AT_CLONE]) == digests_of([*FIRST, *AT_CLONE])
        assert conditions(status_of(clone)) == {"ledger"}
        ledger = ledger_of(node)
        assert [entry.header_sha256 for entry in ledger[: len(before)]] == before
        own = {entry.header.incarnation for entry in ledger}
        beat = open_beat(bucket_of(node).get(beat_key("site-a")), "site-a", {node.signer})
        assert beat.incarnation in own
        assert status_of(node)["problems"] == []
    finally:
        clone.stop()
