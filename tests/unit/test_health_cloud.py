"""The checks of the bucket: what it is, whether it lets us in, what time it has."""

from datetime import timedelta

import pytest

from appliance.foundation.errors import CloudRefused, CloudUnavailable
from appliance.health.bucket import check_bucket
from appliance.health.check import Severity
from appliance.health.clock_skew import check_clock_skew
from appliance.health.other_nodes import check_other_nodes
from appliance.health.permissions import check_reading, check_writing
from appliance.remote.store import BucketFinding
from tests.support.fake_store import FakeStore, Fault
from tests.support.manual_clock import ManualClock


class OddBucket(FakeStore):
    """A bucket with something wrong about it."""

    def __init__(self, *conditions) -> None:
        super().__init__(ManualClock())
        self.conditions = conditions

    def check_bucket(self):
        return [BucketFinding(condition, "detail", "hint") for condition in self.conditions]


def severities(findings) -> list[Severity]:
    return [each.severity for each in findings]


def test_a_bucket_that_is_as_it_should_be() -> None:
    assert severities(check_bucket(FakeStore(), needs_lock=True)) == [Severity.OK]


def test_everything_wrong_with_the_bucket_is_named() -> None:
    found = check_bucket(OddBucket("wrong_region", "not_versioned"), needs_lock=True)
    assert severities(found) == [Severity.ERROR, Severity.ERROR]
    assert [each.condition for each in found] == ["bucket_wrong_region", "bucket_not_versioned"]


def test_a_bucket_without_lock_is_an_error_only_where_a_lock_is_wanted() -> None:
    bucket = OddBucket("no_object_lock")
    assert severities(check_bucket(bucket, needs_lock=True)) == [Severity.ERROR]
    assert severities(check_bucket(bucket, needs_lock=False)) == [Severity.OK]


def test_line_credentials_and_bucket_are_told_apart() -> None:
    """Three people are called for these: the carrier, the account's owner, the bucket's."""
    store = FakeStore()
    store.offline = True
    assert check_bucket(store, needs_lock=True)[0].condition == "bucket_line"
    store.offline = False
    store.fail("check_bucket", Fault("before", CloudRefused("HeadBucket", "", "403", "Ask")))
    assert check_bucket(store, needs_lock=True)[0].condition == "bucket_credentials"
    store.missing = True
    assert check_bucket(store, needs_lock=True)[0].condition == "bucket_missing"


def test_reading_is_tried_without_writing() -> None:
    store = FakeStore()
    assert severities(check_reading(store)) == [Severity.OK]
    assert store.keys() == []


@pytest.mark.parametrize("operation", ["head", "versions", "orphan_uploads"])
def test_a_missing_right_is_an_error_that_names_it(operation: str) -> None:
    store = FakeStore()
    refusal = CloudRefused(operation, "", "403", "The credentials lack s3:Something")
    store.fail(operation, Fault("before", refusal))
    (found,) = check_reading(store)
    assert found.severity is Severity.ERROR
    assert "s3:Something" in found.hint


def test_a_cut_line_is_told_once() -> None:
    """The check of the bucket says it; the others have nothing to add."""
    store = FakeStore()
    store.offline = True
    assert check_reading(store) == []
    assert check_clock_skew(ManualClock(), store) == []


def test_a_probe_proves_that_locks_are_carried() -> None:
    store = FakeStore(ManualClock())
    assert severities(check_writing(store, "COMPLIANCE")) == [Severity.OK]
    (key,) = store.keys()
    assert key.startswith("probe/")
    store.carries_lock = False
    assert severities(check_writing(store, "COMPLIANCE")) == [Severity.ERROR]


@pytest.mark.parametrize(
    ("skew_s", "expected"),
    [
        (0, Severity.OK),
        (59, Severity.OK),
        (61, Severity.WARNING),
        (-61, Severity.WARNING),
        (301, Severity.ERROR),
        (-301, Severity.ERROR),
    ],
)
def test_clock_skew(skew_s: float, expected: Severity) -> None:
    clock, bucket = ManualClock(), ManualClock()
    clock._at += timedelta(seconds=skew_s)
    assert severities(check_clock_skew(clock, FakeStore(bucket))) == [expected]


def test_a_skew_that_the_bucket_refuses_for_is_an_error() -> None:
    store = FakeStore()
    store.fail("server_time", Fault("before", CloudRefused("HeadBucket", "", "403", "check NTP")))
    assert severities(check_clock_skew(ManualClock(), store)) == [Severity.ERROR]
    store.fail("server_time", Fault("before", CloudUnavailable("HeadBucket")))
    assert check_clock_skew(ManualClock(), store) == []


def test_a_node_that_beats_unfollowed_is_a_warning() -> None:
    """What it stores would never be found here, and nobody would know."""
    store = FakeStore()
    for name in ("site-a", "cloud"):
        store.seed(f"nodes/{name}.json", b"x")
    assert severities(check_other_nodes(store, "site-a", ["cloud"])) == [Severity.OK]
    (found,) = check_other_nodes(store, "site-a", [])
    assert found.severity is Severity.WARNING
    assert "cloud" in found.sentence
    store.offline = True
    assert check_other_nodes(store, "site-a", []) == []
