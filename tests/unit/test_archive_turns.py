"""Which pack goes next: lanes, turns between peers, each peer's oldest first."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.archive.layout import PackIds, first_pack_id, new_pack_id, pack_created_at
from appliance.archive.turns import NEW_FOR_S, PEERS_REMEMBERED_MAX, Turns
from appliance.remote.store import Lane
from tests.support.manual_clock import START_AT, ManualClock


def _pack(age_s: float) -> str:
    at = START_AT - timedelta(seconds=age_s)
    return new_pack_id(int(at.timestamp() * 1000))


def _all(turns: Turns) -> list[tuple[Lane, str]]:
    found = []
    while turns:
        found.append(turns.take(START_AT))
    return found


def test_the_backlog_of_one_does_not_hold_up_another() -> None:
    """A hundred packs of the CT wait; what the ultrasound sends goes second."""
    turns = Turns()
    flood = [_pack(1000 - number) for number in range(100)]
    for pack_id in flood:
        turns.add(pack_id, "CT1")
    late = _pack(1)
    turns.add(late, "US1")
    order = [pack_id for _, pack_id in _all(turns)]
    assert order.index(late) <= 1
    order.remove(late)
    assert order == flood


def test_who_had_no_turn_for_longest_goes_first() -> None:
    turns = Turns()
    for peer, count in (("CT1", 6), ("MR1", 3), ("US1", 2)):
        for number in range(count):
            turns.add(_pack(100 - number), peer)
    peers = dict(turns._peer_of)
    order = [peers[pack_id] for _, pack_id in _all(turns)]
    assert sorted(order[:3]) == sorted(order[3:6]) == ["CT1", "MR1", "US1"]
    assert sorted(order[6:8]) == ["CT1", "MR1"]
    assert order[8:] == ["CT1"] * 3


def test_what_comes_now_goes_before_what_has_waited_long() -> None:
    turns = Turns()
    old = [_pack(NEW_FOR_S + 100), _pack(NEW_FOR_S + 50)]
    new = [_pack(NEW_FOR_S - 50), _pack(10)]
    for pack_id in (*new, *old):
        turns.add(pack_id, "CT1")
    assert _all(turns) == [
        (Lane.NEW, new[0]), (Lane.NEW, new[1]), (Lane.BACKFILL, old[0]), (Lane.BACKFILL, old[1]),
    ]  # fmt: skip


def test_what_is_new_is_backlog_in_an_hour() -> None:
    """Packs that came into an outage are judged when they are taken, not when they came."""
    turns = Turns()
    pack_id = _pack(0)
    turns.add(pack_id, "CT1")
    later = START_AT + timedelta(seconds=NEW_FOR_S + 1)
    assert turns.take(later) == (Lane.BACKFILL, pack_id)


def test_what_somebody_waits_for_goes_first() -> None:
    turns = Turns()
    packs = [_pack(7200 - number) for number in range(3)]
    for pack_id in packs:
        turns.add(pack_id, "CT1")
    turns.hurry(packs[2])
    turns.hurry(packs[2])
    turns.hurry("not here")
    assert _all(turns)[0] == (Lane.URGENT, packs[2])
    turns.add(packs[0], "CT1", urgent=True)
    assert turns.take(START_AT) == (Lane.URGENT, packs[0])


def test_a_pack_waits_once() -> None:
    turns = Turns()
    pack_id = _pack(1)
    turns.add(pack_id, "CT1")
    turns.add(pack_id, "CT1", urgent=True)
    assert pack_id in turns
    assert len(turns) == 1
    assert len(_all(turns)) == 1
    with pytest.raises(LookupError):
        turns.take(START_AT)


def test_peers_are_forgotten_at_a_limit() -> None:
    turns = Turns()
    for number in range(PEERS_REMEMBERED_MAX + 50):
        turns.add(_pack(1), f"PEER{number}")
        turns.take(START_AT)
    assert len(turns._served) == PEERS_REMEMBERED_MAX
    assert turns._lines == {}


@given(
    st.lists(st.tuples(st.integers(0, 8000), st.sampled_from("ABCD"), st.booleans()), max_size=40)
)
def test_nothing_is_lost_and_each_peers_order_is_kept(waiting) -> None:
    """Whatever waits: all of it goes, once; of one peer, within a lane, the oldest first."""
    turns = Turns()
    peers = {}
    for age_s, peer, urgent in waiting:
        pack_id = _pack(age_s)
        peers[pack_id] = peer
        turns.add(pack_id, peer, urgent=urgent)
    order = _all(turns)
    assert sorted(pack_id for _, pack_id in order) == sorted(peers)
    assert [lane for lane, _ in order] == sorted(lane for lane, _ in order)
    for peer in set(peers.values()):
        for lane in Lane:
            of_peer = [p for each, p in order if each is lane and peers[p] == peer]
            assert of_peer == sorted(of_peer)


def test_the_first_id_of_a_moment_is_below_all_of_it() -> None:
    first = first_pack_id(START_AT)
    assert pack_created_at(first) == START_AT
    assert first <= new_pack_id(int(START_AT.timestamp() * 1000))
    assert first > new_pack_id(int(START_AT.timestamp() * 1000) - 1)


def test_ids_of_a_writer_ascend_though_the_clock_stands_or_steps_back() -> None:
    """The order of a backlog is the order in which it came; after a real step back, the clock's."""
    clock = ManualClock()
    ids = PackIds(clock)
    found = [ids.next() for _ in range(3)]
    clock.advance(-0.5)
    found += [ids.next() for _ in range(3)]
    assert found == sorted(found)
    clock.advance(-3600)
    assert abs((pack_created_at(ids.next()) - clock.now()).total_seconds()) < 0.01
