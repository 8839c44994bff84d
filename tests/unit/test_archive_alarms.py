"""Alarms of the backlog: raised when it lasts, over when it is clearly over, told once."""

import pytest
from structlog.testing import capture_logs

from appliance.archive.alarms import CLEAR_S, RAISE_S, AlarmBoard, Readings
from appliance.config.care import Alarms
from tests.support.manual_clock import ManualClock

GOOD = Readings(None, 0.0, None, None, 0.9)
BAD = {
    "time_to_full": GOOD._replace(time_to_full_s=3 * 3600.0),
    "time_to_drain": GOOD._replace(time_to_drain_s=4 * 86400.0),
    "pending_age": GOOD._replace(pending_age_s=3700.0),
    "link_down": GOOD._replace(link_down_s=1000.0),
    "room": GOOD._replace(room=0.05),
}


class Board:
    """A board under a clock that goes on by `step_s` at each reading."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.board = AlarmBoard(self.clock, Alarms())

    def take(self, readings: Readings, for_s: float, step_s: float = 30.0) -> list[str]:
        end_s = self.clock.monotonic_s() + for_s
        while self.clock.monotonic_s() <= end_s:
            self.board.take(readings)
            self.clock.advance(step_s)
        return [each.condition for each in self.board.problems()]


@pytest.mark.parametrize("condition", BAD)
def test_each_is_raised_and_is_over_by_itself(condition: str) -> None:
    board = Board()
    assert board.take(GOOD, 600) == []
    assert board.take(BAD[condition], RAISE_S) == [condition]
    (problem,) = board.board.problems()
    assert problem.sentence
    assert problem.hint
    assert board.take(GOOD, CLEAR_S) == []


def test_what_does_not_last_is_no_alarm() -> None:
    board = Board()
    for _ in range(20):
        assert board.take(BAD["room"], RAISE_S / 2) == []
        assert board.take(GOOD, 0) == []


def test_a_value_around_its_threshold_does_not_flap() -> None:
    """Hours around 10 % of room, now above, now below: one alarm, told once, that stands."""
    board = Board()
    with capture_logs() as logs:
        board.take(GOOD._replace(room=0.099), RAISE_S)
        for _ in range(100):
            assert board.take(GOOD._replace(room=0.101), 150) == ["room"]
            assert board.take(GOOD._replace(room=0.099), 150) == ["room"]
    assert [each["event"] for each in logs] == ["alarm_raised"]


def test_a_value_around_an_upper_threshold_does_not_flap() -> None:
    """What waited longest is an hour old, now a little more, now a little less."""
    board = Board()
    board.take(GOOD._replace(pending_age_s=3601.0), RAISE_S)
    for _ in range(20):
        assert board.take(GOOD._replace(pending_age_s=3590.0), 300) == ["pending_age"]
    assert board.take(GOOD._replace(pending_age_s=2800.0), CLEAR_S) == []


def test_each_change_is_told_once() -> None:
    board = Board()
    with capture_logs() as logs:
        board.take(BAD["pending_age"], 3600)
        board.take(GOOD, 3600)
    assert [(each["event"], each["alarm"]) for each in logs] == [
        ("alarm_raised", "pending_age"), ("alarm_over", "pending_age"),
    ]  # fmt: skip


def test_the_sentence_says_how_it_stands_now() -> None:
    board = Board()
    board.take(BAD["link_down"], RAISE_S)
    board.take(GOOD._replace(link_down_s=7200.0), 0)
    (problem,) = board.board.problems()
    assert problem.sentence == "the line to the bucket has been down for 2 h 00 min"


def test_the_worst_comes_first() -> None:
    everything = Readings(3600.0, 10 * 86400.0, 7200.0, 3600.0, 0.01)
    assert Board().take(everything, RAISE_S) == [
        "time_to_full", "room", "link_down", "pending_age", "time_to_drain",
    ]  # fmt: skip
