"""A follower reads checkpoints where that is shorter, or where it can read nothing else."""

import os
import shutil
from pathlib import Path

import pytest

from appliance.archive.checkpoint_name import CheckpointName
from appliance.archive.checkpoint_read import kept_directory
from appliance.archive.findings import Kind
from appliance.archive.following import follow_state_path
from appliance.archive.ledger_entry import entry_key, entry_name
from appliance.archive.ledger_follower import CHECKPOINT_ENTRIES, JUDGED_S, RECHECK_S
from appliance.archive.rebuild import rebuild
from appliance.seal.identity import load_identity, new_identity_file
from appliance.seal.signing import SigningKey
from tests.support.fake_store import FakeStore, no_answer
from tests.support.made_ledger import MadeLedger
from tests.support.standby_box import Sites, StandbyBox, sites  # noqa: F401

NODE = "site-a"


def gets(sites: Sites, prefix: str) -> int:
    """Return how many GETs of keys with a prefix there were."""
    return sum(verb == "get" and key.startswith(prefix) for verb, key in sites.store.requests)


def checkpoint_keys(sites: Sites) -> list[str]:
    return list(filter(CheckpointName.parse, sites.store.keys()))


def rebuilt(box: StandbyBox, *, offline: bool = False) -> None:
    """Make the index anew."""
    rebuild(
        box.layout, box.index, "standby", box.identities, None if offline else box.store,
        lambda _amount: None, box.others(offline=offline),
    )  # fmt: skip


def later_standby(sites: Sites) -> StandbyBox:
    """Return a standby of which nothing knew that was written so far."""
    new_identity_file(str(sites.folder / "later.key"))
    return sites.box("later", identities=load_identity(str(sites.folder / "later.key")))


def recipients(sites: Sites, later: StandbyBox) -> list[str]:
    return [*sites.recipients, later.identities[0].recipient]


def put_of_another_history(sites: Sites, key: SigningKey) -> None:
    """Put a checkpoint of other entries 1 to 4, signed with a key."""
    bucket, sites.store = sites.store, FakeStore(sites.clock)
    other = MadeLedger(NODE, key, sites.recipients)
    sites.write(*range(201, 205), ledger=other)
    sites.write_checkpoints(other, level_entries=(4,))
    (name,) = checkpoint_keys(sites)
    content = sites.store.content(name)
    sites.store = bucket
    sites.store.seed(name, content)


def test_a_cold_start_reads_checkpoints_and_the_entries_behind_them(sites: Sites) -> None:
    """The index is the same, byte for byte, as from single entries."""
    sites.write(*range(1, 23))
    singly = sites.box("singly")
    singly.follow()
    sites.write_checkpoints()
    sites.store.requests.clear()
    box = sites.box()
    box.follow()
    assert box.studies() == set(range(1, 23))
    assert box.fingerprint() == singly.fingerprint()
    assert gets(sites, "ledger/") == 2
    assert box.follower.problems() == []
    box.follow()
    sites.write(23)
    box.follow()
    assert box.applied() == 23
    assert box.found() == []


def test_one_that_comes_back_after_long_reads_what_it_missed_from_checkpoints(
    sites: Sites,
) -> None:
    """A few new entries are read one by one all the same."""
    sites.write(1, 2)
    box = sites.box()
    box.follow()
    sites.write(*range(3, 5 + CHECKPOINT_ENTRIES))
    sites.write_checkpoints()
    sites.store.requests.clear()
    box.follow()
    assert gets(sites, "ledger/") < 4
    assert box.studies() == set(range(1, 5 + CHECKPOINT_ENTRIES))
    sites.write(100, 101)
    sites.write_checkpoints()
    sites.store.requests.clear()
    box.follow()
    assert gets(sites, "ledger/") == 2
    assert gets(sites, "checkpoints/") == 0


def test_nothing_new_costs_no_look_at_checkpoints(sites: Sites) -> None:
    """With an empty ledger beside it, and entries that stay unreadable."""
    sites.write(1, 2, 3, 4, 5)
    sites.write_checkpoints()
    box = sites.box()
    box.follow()
    sites.store.requests.clear()
    for _ in range(3):
        box.follow()
    assert {key for _, key in sites.store.requests} == {"ledger/site-a/", "ledger/site-b/"}


class TestLaterStandby:
    """A standby that was added when there was a history already."""

    def test_it_reads_what_was_written_before_it_came(self, sites: Sites) -> None:
        """Old entries from checkpoints for its key, with the pack's file keys; new ones by itself.

        The short checkpoint covers what lies behind the last full range.
        """
        sites.write(*range(1, 23))
        early = sites.box("early")
        early.follow()
        later = later_standby(sites)
        sites.a.recipients = recipients(sites, later)
        sites.write_checkpoints(since=23)
        sites.write(23)
        later.follow()
        early.follow()
        assert later.studies() == set(range(1, 24))
        assert later.fingerprint() == early.fingerprint()
        assert later.found() == []
        assert later.follower.problems() == []

    def test_it_reads_them_when_they_come_late(self, sites: Sites) -> None:
        """First what it can read; the rest, a finding until then, when the site has written it."""
        sites.write(*range(1, 7))
        later = later_standby(sites)
        sites.a.recipients = recipients(sites, later)
        sites.write(7)
        later.follow()
        assert later.studies() == {7}
        assert later.found() == [(Kind.UNREADABLE, 1, 6)]
        sites.write_checkpoints(since=7)
        sites.clock.advance(RECHECK_S)
        later.follow()
        later.follow()
        assert later.studies() == set(range(1, 8))
        assert later.found() == []
        later.audit()
        assert later.found() == []

    def test_checkpoints_for_others_are_asked_for_once(self, sites: Sites) -> None:
        """Their head says that they are for others; that is not fetched with every look."""
        sites.write(*range(1, 7))
        sites.write_checkpoints()
        later = later_standby(sites)
        later.follow()
        sites.store.requests.clear()
        for _ in range(3):
            sites.clock.advance(RECHECK_S)
            later.follow()
        assert gets(sites, "checkpoints/") == 0
        assert later.found() == [(Kind.UNREADABLE, 1, 6)]

    def test_its_index_is_made_anew_from_its_disk(self, sites: Sites) -> None:
        """Copies of checkpoints stand in for entries that it could never read."""
        sites.write(*range(1, 23))
        later = later_standby(sites)
        sites.a.recipients = recipients(sites, later)
        sites.write_checkpoints(since=23)
        sites.write(23)
        later.follow()
        before = later.fingerprint()
        rebuilt(later, offline=True)
        assert later.studies() == set(range(1, 24))
        assert later.fingerprint() == before

    def test_it_fetches_again_what_its_disk_lost(self, sites: Sites) -> None:
        """Found by the audit, for there are no copies of single entries."""
        sites.write(*range(1, 9))
        later = later_standby(sites)
        sites.a.recipients = recipients(sites, later)
        sites.write_checkpoints(since=9)
        later.follow()
        shutil.rmtree(kept_directory(later.layout, NODE))
        later.audit()
        sites.clock.advance(RECHECK_S)
        later.follow()
        later.follow()
        assert later.found() == []
        assert len(os.listdir(kept_directory(later.layout, NODE))) == 2


class TestWrong:
    """What is wrong with a checkpoint is a finding, and single entries are read."""

    @pytest.mark.parametrize("what", ["damaged", "forged", "empty"])
    def test_single_entries_are_read_in_its_place(self, sites: Sites, what: str) -> None:
        sites.write(*range(1, 7))
        if what == "forged":
            put_of_another_history(sites, sites.ledger("site-a", "forger").signing_key)
        else:
            sites.write_checkpoints()
            (key,) = checkpoint_keys(sites)
            version = sites.store._keys[key][0]
            half = len(version.content) // 2
            version.content = version.content[:half] if what == "damaged" else b""
        sites.store.requests.clear()
        box = sites.box()
        box.follow()
        assert box.studies() == set(range(1, 7))
        assert box.found() == [(Kind.CHECKPOINT, 1, 4)]
        assert "single entries are read" in box.follower.problems()[0].sentence
        assert gets(sites, "ledger/") == 6

    def test_another_history_than_the_one_known_is_not_taken(self, sites: Sites) -> None:
        """Signed by the node itself: it was set back, or there are two of it."""
        sites.write(1, 2)
        box = sites.box()
        box.follow()
        put_of_another_history(sites, sites.a.signing_key)
        sites.write(*range(3, 5 + CHECKPOINT_ENTRIES))
        box.follow()
        assert box.studies() == set(range(1, 5 + CHECKPOINT_ENTRIES))
        assert box.found() == [(Kind.CHECKPOINT, 1, 4)]

    def test_a_finding_is_over_when_the_checkpoint_is_sound(self, sites: Sites) -> None:
        """Seen soon after the next start, and not before: a version does not change by itself."""
        sites.write(*range(1, 7))
        sites.write_checkpoints()
        (key,) = checkpoint_keys(sites)
        version = sites.store._keys[key][0]
        whole, version.content = version.content, version.content[:-1]
        box = sites.restarted(sites.box())
        box.follow()
        version.content = whole
        for _ in range(2):
            assert box.found() == [(Kind.CHECKPOINT, 1, 4)]
            sites.clock.advance(JUDGED_S)
            box.follow()
        again = sites.restarted(box)
        assert again.found() == [(Kind.CHECKPOINT, 1, 4)]
        sites.clock.advance(RECHECK_S)
        again.follow()
        assert again.found() == []

    def test_a_finding_is_over_when_the_checkpoint_is_gone(self, sites: Sites) -> None:
        """Within the hour, whatever else is looked for meanwhile."""
        sites.write(*range(1, 7))
        sites.write_checkpoints()
        (key,) = checkpoint_keys(sites)
        sites.store.damage(key, 400)
        box = sites.box()
        box.follow()
        sites.write(*range(7, 7 + CHECKPOINT_ENTRIES + 1))
        box.follow()
        assert box.found() == [(Kind.CHECKPOINT, 1, 4)]
        del sites.store._keys[key]
        sites.clock.advance(JUDGED_S)
        box.follow()
        sites.clock.advance(JUDGED_S)
        box.follow()
        assert box.found() == []

    def test_a_removed_entry_in_a_checkpoint_is_known_all_the_same(self, sites: Sites) -> None:
        """What it says is applied; that it is gone from the bucket is found by the audit."""
        sites.write(*range(1, 7))
        sites.write_checkpoints()
        del sites.store._keys[entry_key(NODE, 2)]
        box = sites.box()
        box.follow()
        box.audit()
        assert box.studies() == set(range(1, 7))
        assert box.found() == [(Kind.REMOVED, 2, 2)]


class TestInterrupted:
    """A cold start that is cut short goes on, and nothing is applied twice or left out."""

    def test_a_line_that_breaks_between_checkpoints(self, sites: Sites) -> None:
        sites.write(*range(1, 23))
        sites.write_checkpoints(level_entries=(4,))
        sites.store.requests.clear()
        box = sites.box()
        for count in range(1, 12):
            # Heads and bodies in turn: every one of them fails once.
            sites.store.fail("get", no_answer())
            box.follow()
            sites.clock.advance(100)
            if count == 6:
                box = sites.restarted(box)
        box.follow()
        assert box.studies() == set(range(1, 23))
        assert box.found() == []
        assert gets(sites, "ledger/") < 6

    def test_a_lost_state_is_made_again_from_the_copies(self, sites: Sites) -> None:
        sites.write(*range(1, 19))
        sites.write_checkpoints()
        box = sites.box()
        box.follow()
        before = box.fingerprint()
        Path(follow_state_path(box.layout, NODE)).unlink()
        sites.store.requests.clear()
        again = sites.restarted(box)
        again.follow()
        assert again.applied() == 18
        assert again.fingerprint() == before
        assert gets(sites, "checkpoints/") == gets(sites, "ledger/") == 0

    def test_a_rebuild_meets_a_checkpoint_that_is_kept_meanwhile(self, sites: Sites) -> None:
        """Kept and applied to the old index while the new one was filled."""
        sites.write(*range(1, 9))
        box = sites.box()
        others = box.others(offline=True)
        filled: list[float] = []

        def follow_meanwhile(_amount: float) -> None:
            if not filled:
                filled.append(0)
                box.follow()

        sites.write_checkpoints()
        (Path(box.layout.ledger) / "site-b").mkdir(exist_ok=True)
        sites.write(401, ledger=sites.b)
        copy = Path(box.layout.ledger, "site-b", entry_name(1))
        copy.write_bytes(sites.store.content(entry_key("site-b", 1)))
        rebuild(
            box.layout, box.index, "standby", box.identities, None, follow_meanwhile, others
        )  # fmt: skip
        assert filled
        assert box.studies() == {*range(1, 9), 401}
