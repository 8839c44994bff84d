"""What is remembered of intake and line: what counts, what is left out, and how much is kept."""

from pathlib import Path

import msgspec
import pytest

from appliance.archive.history import (
    GAP_MAX_S,
    HOUR_S,
    HOURS_MAX,
    RATES_MAX,
    Recorder,
    Sample,
    read_history,
)
from appliance.archive.layout import Layout
from appliance.foundation.files import FileSystem

START_S = 1_772_420_400.0  # a full hour


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(str(tmp_path))
    found.create(FileSystem())
    return found


def _sample(after_s: float, pending: int = 0, drained: int = 0, sent: int = 0, **other) -> Sample:
    state = {
        "idle_count": int(after_s), "busy": False, "link_up": True, "throttle_bytes_per_s": 1000.0,
    } | other  # fmt: skip
    return Sample(START_S + after_s, pending, drained, sent, **state)


def test_intake_is_growth_and_what_left_meanwhile(layout: Layout) -> None:
    recorder = Recorder(FileSystem(), layout)
    recorder.take(_sample(0, pending=500))
    recorder.take(_sample(60, pending=200, drained=900))
    assert recorder.history.last_hour_rate() == 600 / 60


def test_a_pack_seen_gone_before_it_is_counted_as_drained_makes_up(layout: Layout) -> None:
    """The index is told a moment before the count rises: the next sample sets it right."""
    recorder = Recorder(FileSystem(), layout)
    recorder.take(_sample(0, pending=900))
    recorder.take(_sample(60, pending=0, drained=0))
    assert recorder.history.last_hour_rate() == 0.0
    recorder.take(_sample(120, pending=0, drained=900))
    assert sum(each.bytes for each in recorder.history.minutes) == 0


def test_the_past_outlives_the_process(layout: Layout) -> None:
    """What came while the uplink was away counts, and its own counts begin at nothing again."""
    Recorder(FileSystem(), layout).take(_sample(0, pending=100, drained=10_000))
    again = Recorder(FileSystem(), layout)
    again.take(_sample(600, pending=700, drained=0))
    assert again.history.last_hour_rate() == 1.0


def test_a_long_absence_is_not_known(layout: Layout) -> None:
    Recorder(FileSystem(), layout).take(_sample(0))
    again = Recorder(FileSystem(), layout)
    again.take(_sample(GAP_MAX_S + 1, pending=10**9))
    assert again.history.last_hour_rate() is None
    assert again.history.hours == {}


def test_a_clock_that_is_set_back_counts_nothing(layout: Layout) -> None:
    recorder = Recorder(FileSystem(), layout)
    recorder.take(_sample(7200))
    recorder.take(_sample(0, pending=10**9))
    assert recorder.history.hours == {}


def test_a_stretch_over_the_full_hour_is_split(layout: Layout) -> None:
    recorder = Recorder(FileSystem(), layout)
    recorder.take(_sample(HOUR_S / 2))
    recorder.take(_sample(HOUR_S + HOUR_S / 2, pending=3600))
    assert recorder.history.hour_rate(START_S) == 1.0
    assert recorder.history.hour_rate(START_S + HOUR_S) == 1.0
    assert recorder.history.hour_rate(START_S + 2 * HOUR_S) is None


def test_the_line_is_measured_only_under_load(layout: Layout) -> None:
    """Idle minutes, an outage, and a change of the throttle say nothing of what it carries."""
    recorder = Recorder(FileSystem(), layout)
    loaded = {"idle_count": 0, "busy": True}
    recorder.take(_sample(0))
    recorder.take(_sample(60, sent=6_000))
    recorder.take(_sample(120, sent=12_000, **loaded))
    recorder.take(_sample(180, sent=72_000, **loaded))
    recorder.take(_sample(240, sent=72_000, **(loaded | {"link_up": False})))
    recorder.take(_sample(300, sent=72_000, **loaded))
    recorder.take(_sample(360, sent=372_000, **(loaded | {"throttle_bytes_per_s": 5000.0})))
    recorder.take(_sample(420, sent=672_000, **(loaded | {"throttle_bytes_per_s": 5000.0})))
    found = {each.throttle_bytes_per_s: each.rates for each in recorder.history.line}
    assert found == {1000.0: [1000.0], 5000.0: [5000.0]}


def test_what_is_kept_is_bounded(layout: Layout) -> None:
    """Months of samples: weeks of hours, some rates, and a file that stays small."""
    recorder = Recorder(FileSystem(), layout)
    loaded = {"idle_count": 0, "busy": True}
    for number in range(3000):
        recorder.take(
            _sample(number * 1800, sent=number * 10**6, **loaded, throttle_bytes_per_s=number % 40)
        )
        recorder.take(
            _sample(
                number * 1800 + 60, sent=number * 10**6, **loaded, throttle_bytes_per_s=number % 40
            )
        )
    history = read_history(layout)
    assert len(history.hours) <= HOURS_MAX
    assert len(history.line) <= 16
    assert all(len(each.rates) <= RATES_MAX for each in history.line)
    assert len(history.minutes) <= 5
    assert len(msgspec.json.encode(history)) < 100_000


def test_a_damaged_file_is_no_history(layout: Layout) -> None:
    Recorder(FileSystem(), layout).take(_sample(0))
    path = Path(layout.state) / "history.json"
    path.write_bytes(path.read_bytes()[:-7])
    assert read_history(layout).at_s == 0.0
