"""What can be done to a ledger with a stolen cloud key: found, named, and the rest goes on.

The attacker can write and delete in the bucket, has every entry's bytes and knows to whom entries
are sealed. What he does not have is the signing key.
"""

import gzip
import threading
import tracemalloc

import msgspec
import pytest

from appliance.archive.findings import FINDINGS_MAX, Finding, Findings, Kind
from appliance.archive.follow import Follower
from appliance.archive.ledger_entry import entry_key
from appliance.seal.age import decrypt_bytes, encrypt_bytes
from appliance.seal.identity import Identity
from tests.support.made_ledger import pack_record, put_object
from tests.support.standby_box import Sites, facts, sites  # noqa: F401


def replace_object(sites: Sites, sequence: int, content: bytes) -> None:
    """Put other bytes in the place of an entry, as if it had never been there."""
    key = entry_key("site-a", sequence)
    for version in list(sites.store.versions(key)):
        sites.store.delete_version(key, version.version_id)
    put_object(sites.store, key, content)


def content_of(sites: Sites, sequence: int, node: str = "site-a") -> bytes:
    return sites.store.content(entry_key(node, sequence))


def test_a_removed_entry_is_a_gap_that_is_named_and_filled_later(sites: Sites) -> None:
    """What is behind it is applied; when it is restored, it is applied too and the finding goes."""
    sites.write(1, 2, 3, 4)
    removed = content_of(sites, 2)
    key = entry_key("site-a", 2)
    sites.store.delete_version(key, next(iter(sites.store.versions(key))).version_id)
    box = sites.box()
    box.follow()
    assert box.studies() == {1, 3, 4}
    assert box.found() == [(Kind.MISSING, 2, 2)]
    assert [each.condition for each in box.follower.problems()] == ["ledger_missing"]
    again = sites.restarted(box)
    again.follow()
    assert again.found() == [(Kind.MISSING, 2, 2)]
    put_object(sites.store, key, removed)
    sites.clock.advance(120.0)
    again.follow()
    assert again.studies() == {1, 2, 3, 4}
    assert again.found() == []


def test_an_altered_entry_is_named_and_not_applied(sites: Sites) -> None:
    """A flipped bit anywhere: the authentication of the file fails."""
    sites.write(1, 2, 3)
    sites.store.damage(entry_key("site-a", 2), at=400)
    box = sites.box()
    box.follow()
    assert box.studies() == {1, 3}
    assert box.found() == [(Kind.ALTERED, 2, 2)]


def test_an_entry_altered_and_sealed_again_to_the_right_recipients_is_named(sites: Sites) -> None:
    """A standby's own identity stolen: records are changed and sealed anew; a hash tells."""
    sites.write(1, 2, 3)
    plain = gzip.decompress(decrypt_bytes(content_of(sites, 2), sites.identities))
    assert b"P2" in plain
    changed = gzip.compress(plain.replace(b'"P2"', b'"P9"'))
    replace_object(sites, 2, encrypt_bytes(changed, sites.recipients))
    box = sites.box()
    box.follow()
    assert box.studies() == {1, 3}
    assert box.found() == [(Kind.ALTERED, 2, 2)]


@pytest.mark.parametrize("claims", ["own key", "the node's key"])
def test_an_entry_forged_with_the_right_recipients_is_named(sites: Sites, claims: str) -> None:
    """Encryption to public recipients authenticates nobody: another key signed it."""
    sites.write(1)
    thief = sites.ledger("site-a", "thief")
    thief.previous = sites.a.previous
    entry = thief.build([pack_record(facts(9))], sequence=2)
    if claims == "the node's key":
        lie = msgspec.structs.replace(entry.signature, key=sites.a.signing_key.public_text)
        entry = msgspec.structs.replace(entry, signature=lie)
    put_object(sites.store, entry_key("site-a", 2), thief.seal(entry))
    box = sites.box()
    box.follow()
    assert box.studies() == {1}
    assert box.found() == [(Kind.FORGED, 2, 2)]


def test_the_chain_goes_on_behind_a_forged_entry(sites: Sites) -> None:
    """The next entry that is rightly signed is applied, and the chain is checked from there."""
    sites.write(1, 2, 3, 4)
    thief = sites.ledger("site-a", "thief")
    replace_object(sites, 2, thief.seal(thief.build([pack_record(facts(9))], sequence=2)))
    box = sites.box()
    box.follow()
    assert box.studies() == {1, 3, 4}
    assert box.found() == [(Kind.FORGED, 2, 2)]


def test_an_entry_swapped_between_nodes_is_named(sites: Sites) -> None:
    """Both are rightly signed, each by its node: neither is in its place."""
    sites.write(1, 2)
    sites.write(3, 4, ledger=sites.b)
    replace_object(sites, 2, content_of(sites, 2, "site-b"))
    box = sites.box()
    box.follow()
    assert box.studies() == {1, 3, 4}
    assert box.found() == [(Kind.SWAPPED, 2, 2)]
    assert box.found("site-b") == []


def test_an_entry_replayed_under_another_sequence_is_named(sites: Sites) -> None:
    """An old entry again, where the next one is to come."""
    sites.write(1, 2)
    put_object(sites.store, entry_key("site-a", 3), content_of(sites, 1))
    box = sites.box()
    box.follow()
    assert box.studies() == {1, 2}
    assert box.found() == [(Kind.REPLAYED, 3, 3)]
    assert box.applied() == 2


def test_an_entry_hidden_by_a_delete_marker_is_read_and_named(sites: Sites) -> None:
    """Reads go by version id; removing the marker ends the finding."""
    sites.write(1, 2, 3)
    sites.store.put_delete_marker(entry_key("site-a", 2))
    box = sites.box()
    box.follow()
    assert box.studies() == {1, 2, 3}
    assert box.found() == [(Kind.HIDDEN, 2, 2)]
    marker = next(v for v in sites.store.versions() if v.is_delete_marker)
    sites.store.delete_version(marker.key, marker.version_id)
    box.audit()
    assert box.found() == []


def test_of_an_overwritten_entry_the_oldest_version_counts(sites: Sites) -> None:
    """A newer version, rightly signed even, changes nothing and is named."""
    sites.write(1, 2)
    sites.store.seed(entry_key("site-a", 1), content_of(sites, 2))
    box = sites.box()
    box.follow()
    assert box.studies() == {1, 2}
    assert box.found() == [(Kind.OVERWRITTEN, 1, 1)]


def test_an_entry_sealed_to_others_is_unreadable_and_named(sites: Sites) -> None:
    """It goes on behind; when this node gets an identity that opens it, it is applied."""
    other = Identity.generate()
    sites.write(1)
    sites.a.recipients = [other.recipient]
    sites.write(2)
    sites.a.recipients = sites.recipients
    sites.write(3)
    box = sites.box()
    box.follow()
    assert box.studies() == {1, 3}
    assert box.found() == [(Kind.UNREADABLE, 2, 2)]
    again = sites.restarted(box, identities=[*sites.identities, other])
    sites.clock.advance(120.0)
    again.follow()
    assert again.studies() == {1, 2, 3}
    assert again.found() == []


def test_a_fork_that_the_node_signed_itself_is_named_and_applied(sites: Sites) -> None:
    """Two boxes under one name, or a box set back: each entry is the node's, the chain is not."""
    sites.write(1, 2)
    sites.a.previous = "f" * 64
    sites.write(3, 4)
    box = sites.box()
    box.follow()
    assert box.studies() == {1, 2, 3, 4}
    assert box.found() == [(Kind.CHAIN, 3, 3)]


def test_what_is_done_to_old_entries_later_is_found_by_the_audit(sites: Sites) -> None:
    """Marker, newer version and removal: all named, nothing of what is known is lost."""
    sites.write(1, 2, 3, 4)
    box = sites.box()
    box.follow()
    sites.store.put_delete_marker(entry_key("site-a", 1))
    sites.store.seed(entry_key("site-a", 2), b"newer")
    for number in (3, 4):
        key = entry_key("site-a", number)
        sites.store.delete_version(key, next(iter(sites.store.versions(key))).version_id)
    box.follow()
    assert box.found() == []
    box.audit()
    found = [(Kind.HIDDEN, 1, 1), (Kind.OVERWRITTEN, 2, 2), (Kind.REMOVED, 3, 4)]
    assert box.found() == found
    assert box.studies() == {1, 2, 3, 4}
    again = sites.restarted(box)
    again.audit()
    assert again.found() == found


def test_what_is_done_to_the_own_ledger_is_found_by_the_audit(sites: Sites) -> None:
    """A node looks over what it wrote itself: nobody else might follow it."""
    sites.write(1, 2, 3)
    box = sites.box()
    follower = Follower(
        box.files, sites.clock, box.layout, box.index, sites.store, "site-a", box.identities, {},
        own_sequence=lambda: 3,
    )  # fmt: skip
    stop = threading.Event()
    follower.run(stop)
    assert follower.problems() == []
    sites.store.put_delete_marker(entry_key("site-a", 1))
    key = entry_key("site-a", 3)
    sites.store.delete_version(key, next(iter(sites.store.versions(key))).version_id)
    sites.clock.advance(4000.0)
    follower.run(stop)
    follower.close()
    assert {each.condition for each in follower.problems()} == {"ledger_hidden", "ledger_removed"}


def test_a_copy_that_this_disk_lost_is_fetched_again_by_the_audit(sites: Sites) -> None:
    """So that a rebuild without the bucket has everything."""
    sites.write(1, 2)
    box = sites.box()
    box.follow()
    copy = f"{box.layout.ledger}/site-a/000000000001.json.gz.age"
    with open(copy, "wb") as file:
        file.write(b"torn")
    assert box.follower._followers["site-a"]._taker.copy(1) is None
    box.audit()
    assert box.follower._followers["site-a"]._taker.copy(1) is not None
    assert box.found() == []


def test_a_name_that_is_not_among_the_signers_is_not_followed(sites: Sites) -> None:
    """A thief's own ledger beside the others, rightly signed by himself, means nothing."""
    thief = sites.ledger("site-c")
    thief.put(sites.store, [pack_record(facts(9, "site-c"))])
    sites.write(1)
    box = sites.box()
    box.follow()
    assert box.studies() == {1}


def test_any_number_of_junk_entries_is_few_findings_and_few_requests(sites: Sites) -> None:
    """Junk behind the last entry is fetched once, and named in one finding with a range."""
    sites.write(1)
    for sequence in range(2, 40):
        sites.store.seed(entry_key("site-a", sequence), b"junk")
    box = sites.box()
    box.follow()
    assert box.found() == [(Kind.ALTERED, 2, 39)]
    sites.store.requests.clear()
    box.follow()
    assert sites.store.requests == [("versions", "ledger/site-a/"), ("versions", "ledger/site-b/")]


def test_findings_are_bounded_and_say_that_there_are_more() -> None:
    """An attacker can't fill the disk with findings."""
    findings = Findings("site-a")
    for sequence in range(1, 3 * FINDINGS_MAX, 2):
        findings.add(Kind.FORGED, sequence, sequence, "now")
    assert len(findings) == FINDINGS_MAX
    assert findings.more
    (problem,) = findings.problems()
    assert "more places" in problem.sentence


def test_findings_of_neighbours_are_one_and_part_again() -> None:
    """A range grows at its ends and is split where a part of it heals."""
    findings = Findings("site-a")
    for sequence in (5, 6, 4, 6):
        findings.add(Kind.MISSING, sequence, sequence, "now")
    assert list(findings) == [Finding(Kind.MISSING, 4, 6, "now")]
    assert findings.heal(5)
    assert [(each.first, each.last) for each in findings] == [(4, 4), (6, 6)]
    assert not findings.heal(5)
    assert findings.not_covered(3, 8) == [(3, 3), (5, 5), (7, 8)]


def test_a_small_object_that_unpacks_to_a_huge_one_takes_no_memory(sites: Sites) -> None:
    """A thief's entry, sealed to the right recipients: its head tells, the rest stays packed."""
    sites.write(1)
    thief = sites.ledger("site-a", "thief")
    entry = thief.build([], sequence=2)
    lines = [entry.header_line, msgspec.json.encode(entry.signature), bytes(200 * 2**20)]
    bomb = encrypt_bytes(gzip.compress(b"\n".join(lines), compresslevel=1), sites.recipients)
    del lines
    put_object(sites.store, entry_key("site-a", 2), bomb)
    box = sites.box()
    tracemalloc.start()
    try:
        box.follow()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert box.found() == [(Kind.FORGED, 2, 2)]
    assert peak < 32 * 2**20


def test_what_a_thief_writes_into_an_entry_is_not_shown_as_it_is(sites: Sites) -> None:
    """A name of any length, with escapes for the operator's terminal."""
    sites.write(1)
    thief = sites.ledger("site-a", "thief")
    entry = thief.build([], sequence=2, node="\x1b[2J" + "x" * 100_000)
    put_object(sites.store, entry_key("site-a", 2), thief.seal(entry))
    box = sites.box()
    box.follow()
    (problem,) = box.follower.problems()
    assert problem.condition == "ledger_swapped"
    assert problem.sentence.isprintable()
    assert len(problem.sentence) < 400


def test_an_entry_whose_head_never_ends_is_named(sites: Sites) -> None:
    """No line end in any number of bytes."""
    sites.write(1)
    endless = encrypt_bytes(gzip.compress(bytes(20 * 2**20)), sites.recipients)
    put_object(sites.store, entry_key("site-a", 2), endless)
    box = sites.box()
    box.follow()
    assert box.found() == [(Kind.ALTERED, 2, 2)]
