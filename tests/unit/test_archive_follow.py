"""Following the ledgers of other nodes: what is new, once, in a few requests, whatever happens."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.archive import ledger_follower
from appliance.archive.findings import Kind
from appliance.archive.following import follow_state_path
from appliance.archive.ledger_entry import entry_key
from appliance.archive.ledger_listing import AHEAD_BYTES_MAX, AHEAD_MAX, ahead, last_listed
from appliance.foundation.errors import StorageFailed
from appliance.foundation.files import FileSystem
from appliance.seal.identity import Identity
from tests.support.fake_store import Fault, no_answer
from tests.support.made_ledger import put_object
from tests.support.standby_box import Sites, sites  # noqa: F401


def test_an_empty_standby_knows_what_all_ledgers_say(sites: Sites) -> None:
    """Bucket, identity and public signing keys are enough."""
    sites.write(1, 2, 3)
    sites.write(4, 5, ledger=sites.b)
    box = sites.box()
    box.follow()
    assert box.studies() == {1, 2, 3, 4, 5}
    assert (box.applied("site-a"), box.applied("site-b")) == (3, 2)
    assert box.follower.problems() == []


def test_what_is_new_costs_one_list_and_one_get_and_nothing_costs_one_list(sites: Sites) -> None:
    """What is known already is not listed and not fetched again."""
    sites.write(1, 2, 3)
    box = sites.box()
    box.follow()
    sites.store.requests.clear()
    box.follow()
    assert sites.store.requests == [("versions", "ledger/site-a/"), ("versions", "ledger/site-b/")]
    sites.write(4)
    sites.store.requests.clear()
    box.follow()
    assert sites.store.requests == [
        ("versions", "ledger/site-a/"),
        ("get", entry_key("site-a", 4)),
        ("versions", "ledger/site-b/"),
    ]
    assert box.studies() == {1, 2, 3, 4}


def test_the_last_sequence_is_found_in_few_requests(sites: Sites) -> None:
    """Bisection, not a listing of everything, says how far a ledger goes."""
    for sequence in range(1, 3001):
        sites.store.seed(entry_key("site-a", sequence), b"")
    sites.store.requests.clear()
    assert last_listed(sites.store, "site-a", 0) == 3000
    assert last_listed(sites.store, "site-a", 3000) == 3000
    assert len(sites.store.requests) < 40


@pytest.mark.parametrize("seed", range(4))
def test_the_index_does_not_depend_on_the_order_in_which_entries_come(
    sites: Sites, seed: int
) -> None:
    """Two standbys that met the same entries at other times have the same index, byte for byte.

    Both sites have the same studies in several versions, received in the same moment.
    """
    source = random.Random(seed)
    early, late = sites.box("early"), sites.box("late")
    numbers = list(range(1, 13))
    source.shuffle(numbers)
    for number in numbers:
        sites.write(number, ledger=source.choice([sites.a, sites.b]), study_number=number % 3 + 1)
        if source.random() < 0.5:
            early.follow()
    early.follow()
    late.follow()
    assert early.studies() == {1, 2, 3}
    assert early.fingerprint() == late.fingerprint()


def test_the_link_down_keeps_what_is_known_and_is_asked_less_and_less(sites: Sites) -> None:
    """Status says so; when the line is back everything comes."""
    sites.write(1)
    box = sites.box()
    box.follow()
    sites.write(2)
    sites.store.offline = True
    box.follow()
    sites.store.requests.clear()
    box.follow()
    assert sites.store.requests == []
    assert {each.condition for each in box.follower.problems()} == {"follow"}
    assert box.studies() == {1}
    sites.store.offline = False
    sites.clock.advance(3600.0)
    box.follow()
    assert box.studies() == {1, 2}
    assert box.follower.problems() == []


def test_a_fetch_that_fails_in_the_middle_loses_nothing(sites: Sites) -> None:
    """What was applied before stays, and the rest comes later, in its place in the chain."""
    sites.write(1, 2, 3, 4)
    box = sites.box()
    sites.store.fail("get", *[no_answer()] * 2)
    box.follow()
    sites.clock.advance(3600.0)
    box.follow()
    assert box.studies() == {1, 2, 3, 4}
    assert box.found() == []


class _Failing(FileSystem):
    """A disk that fails a write of one name."""

    def __init__(self, part: str) -> None:
        self.part = part

    def write_atomic(self, path: str, content: bytes, mode: int = 0o660) -> None:
        if self.part in path:
            raise StorageFailed("write", path, "staged")
        super().write_atomic(path, content, mode)


def test_an_entry_whose_copy_can_not_be_written_is_not_applied(sites: Sites) -> None:
    """A rebuild would not have it: the copy comes first."""
    sites.write(1, 2)
    box = sites.box(files=_Failing("000000000002.json"))
    with pytest.raises(StorageFailed):
        box.follow()
    assert 2 not in box.studies()
    again = sites.restarted(box)
    again.follow()
    assert again.studies() == {1, 2}


def test_behind_a_gap_nothing_is_applied_before_the_gap_is_written_down(sites: Sites) -> None:
    """A crash right after the commit of the index does not make the missing entry forgotten."""
    sites.write(1, 2, 3)
    key = entry_key("site-a", 2)
    sites.store.delete_version(key, next(iter(sites.store.versions(key))).version_id)
    box = sites.box(files=_Failing("follow/site-a.json"))
    with pytest.raises(StorageFailed):
        box.follow()
    assert box.studies() == set()
    again = sites.restarted(box)
    again.follow()
    assert again.studies() == {1, 3}
    assert again.found() == [(Kind.MISSING, 2, 2)]


class _FailingAt(FileSystem):
    """A disk that fails its N-th operation and every one behind it, as after an end."""

    def __init__(self, number: int) -> None:
        self.left = number

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StorageFailed("write", "", "staged")

    def open(self, path: str, flags: int, mode: int = 0o660) -> int:
        self._count()
        return super().open(path, flags, mode)

    def pwritev(self, fd, buffers, offset) -> int:
        self._count()
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._count()
        super().fdatasync(fd)

    def rename(self, source: str, target: str) -> None:
        self._count()
        super().rename(source, target)

    def write_volatile(self, path: str, content: bytes) -> None:
        self._count()
        super().write_volatile(path, content)


def test_an_end_at_any_operation_of_the_disk_loses_nothing(sites: Sites) -> None:
    """For each N: the disk fails there; the next start has everything, and the same findings."""
    sites.write(1, 2, 3)
    sites.write(4, ledger=sites.b)
    sites.store.damage(entry_key("site-a", 2))
    whole = sites.box("whole")
    whole.follow()
    failed = 0
    for number in range(100):
        box = sites.box(f"box-{number}")
        failing = _FailingAt(number)
        for follower in box.follower._followers.values():
            follower._copies._files = follower.following._files = failing
        try:
            box.follow()
        except StorageFailed:
            failed += 1
        else:
            break
        again = sites.restarted(box)
        again.follow()
        assert again.fingerprint() == whole.fingerprint()
        assert again.found() == whole.found() == [(Kind.ALTERED, 2, 2)]
        again.close()
        sites.boxes.remove(again)
    assert failed > 10


def test_a_state_that_is_lost_is_made_again_from_the_copies(sites: Sites) -> None:
    """Nothing is fetched a second time."""
    sites.write(1, 2, 3)
    box = sites.box()
    box.follow()
    before = box.fingerprint()
    box.files.unlink(follow_state_path(box.layout, "site-a"))
    again = sites.restarted(box)
    sites.store.requests.clear()
    again.follow()
    assert not [each for each in sites.store.requests if each[0] == "get"]
    assert again.fingerprint() == before
    assert again.applied() == 3


def test_a_key_taken_up_later_is_believed_beside_the_old_one(sites: Sites) -> None:
    """Entries before a change of the signing key stay trusted."""
    sites.write(1)
    old = sites.a.signing_key.public_text
    sites.a.signing_key = sites.ledger("site-a", "new").signing_key
    sites.write(2)
    box = sites.box()
    box.follow()
    assert box.found() == [(Kind.FORGED, 2, 2)]
    signers = sites.signers | {"site-a": (old, sites.a.signing_key.public_text)}
    again = sites.restarted(box, signers=signers)
    again.follow()
    assert again.studies() == {1, 2}
    assert again.found() == []


def test_what_lies_far_ahead_does_not_make_a_standby_pass_by_what_comes(sites: Sites) -> None:
    """A key with the largest number holds junk: the real next entry is taken all the same."""
    sites.write(1)
    put_object(sites.store, entry_key("site-a", 999_999_999_999), b"junk")
    box = sites.box()
    box.follow()
    sites.write(2)
    box.follow()
    assert box.studies() == {1, 2}
    assert box.found() == [(Kind.ALTERED, 999_999_999_999, 999_999_999_999)]
    assert [each.condition for each in box.follower.problems()] == ["ledger_altered"]
    assert [each.lag for each in box.follower.places()] == [0, 0]


def test_far_behind_a_problem_says_how_far(sites: Sites, monkeypatch) -> None:
    """What is known is found meanwhile; caught up, the problem is gone."""
    monkeypatch.setattr(ledger_follower, "BATCH_ENTRIES_MAX", 10)
    for _ in range(130):
        sites.a.put(sites.store, [])
    sites.write(1)
    box = sites.box()
    follower = box.follower._followers["site-a"]
    while not follower.following.sequence:  # the first turn looks for checkpoints
        assert follower.turn(end_s=0.0)
    box.follower._show()
    (problem,) = box.follower.problems()
    assert problem.condition == "catching_up"
    assert "10 of 131 ledger entries" in problem.sentence
    (place, _) = box.follower.places()
    assert (place.applied_sequence, place.last_sequence, place.lag) == (10, 131, 121)
    box.follow()
    assert box.follower.problems() == []
    assert box.studies() == {1}


def test_work_ahead_is_bounded_in_number_and_in_bytes() -> None:
    """However large entries are, a few are in memory; one that is larger than all of it alone."""
    begun: list[int] = []

    def begin(size: int) -> int:
        begun.append(size)
        return size

    with ThreadPoolExecutor(1) as pool:
        few = ahead(pool, begin, [AHEAD_BYTES_MAX // 2] * 9, lambda size: size)
        next(few)
        few.close()
        assert len(begun) <= 3
        begun.clear()
        large = [2 * AHEAD_BYTES_MAX] * 3
        assert list(ahead(pool, begin, large, lambda size: size)) == large
        begun.clear()
        many = ahead(pool, begin, range(10 * AHEAD_MAX))
        next(many)
        many.close()
        assert len(begun) <= AHEAD_MAX + 1


def test_many_entries_that_can_not_be_read_are_passed_once(sites: Sites, monkeypatch) -> None:
    """A standby that was added later, and junk far ahead: what it can read it reads, what comes it
    sees, and each poll costs two lists, however much lies in between. A line that fails in the
    middle of the pass changes nothing of that."""
    monkeypatch.setattr(ledger_follower, "PAGE_ENTRIES", 10)
    sites.a.recipients = [Identity.generate().recipient]
    for _ in range(45):
        sites.a.put(sites.store, [])
    put_object(sites.store, entry_key("site-a", 10**11), b"junk")
    box = sites.box()
    sites.store.fail("get", *[Fault("before")] * 23, no_answer())
    box.follow()
    sites.clock.advance(3600.0)
    box.follow()
    unread = [(Kind.UNREADABLE, 1, 45), (Kind.ALTERED, 10**11, 10**11)]
    assert box.found() == unread
    sites.store.requests.clear()
    box.follow()
    assert sites.store.requests == [("versions", "ledger/site-a/")] * 2 + [
        ("versions", "ledger/site-b/")
    ]
    sites.a.recipients = sites.recipients
    sites.write(1)
    box.follow()
    assert box.studies() == {1}
    again = sites.restarted(box)
    sites.write(2)
    again.follow()
    assert again.studies() == {1, 2}
    assert again.found() == unread
