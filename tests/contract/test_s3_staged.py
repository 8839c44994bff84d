"""The way to the cloud and back, through a store that misbehaves in every way of the fault list.

The real server stands behind a proxy that stages one fault at a time. Proved is what the node makes
of it: what is asked how often, what is named, what stays, and that no version is there twice.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.archive.bucket_watch import BucketWatch
from appliance.archive.evict import Evictor
from appliance.archive.layout import pack_key
from appliance.foundation.clock import SystemClock
from appliance.foundation.errors import (
    AzekuraError,
    CloudMisconfigured,
    CloudRefused,
    CloudUnavailable,
)
from appliance.remote import s3
from appliance.remote.embedded import EmbeddedS3
from appliance.remote.link import Backoff
from appliance.remote.s3 import S3Store
from appliance.remote.s3_client import S3Settings
from tests.support import staged_s3
from tests.support.archive_box import Box, sample
from tests.support.manual_clock import ManualClock
from tests.support.s3_fixture import unlimited
from tests.support.staged_s3 import Fault, StagedS3
from tests.support.stub_store import StubStore, error

HOUR_S = 3600.0
EACH = sample(1, 1)


def _name(value: object) -> str:
    return value.name if isinstance(value, Fault) else getattr(value, "__name__", str(value))


@pytest.fixture
def staged(s3_server: EmbeddedS3) -> Iterator[StagedS3]:
    with StagedS3(s3_server.endpoint_url) as found:
        yield found


@pytest.fixture
def box(tmp_path: Path, staged: StagedS3, s3_settings: S3Settings) -> Iterator[Box]:
    """A node whose bucket is the staged one; its log is opened, and nothing is counted yet."""
    store = S3Store(replace(s3_settings, endpoint_url=staged.url), unlimited(), SystemClock())
    found = Box(tmp_path, store, clock=ManualClock(datetime.now(UTC)))
    assert found.uplink.sequence == 1
    staged.clear()
    yield found
    found.close()


def _pending(box: Box, *studies: int) -> list[str]:
    """Store a sample of each study, and return the packs, sealed."""
    for study in studies or (1,):
        box.store_sample(sample(study, 1))
        box.clock.advance(1)
    box.close_packs()
    box.indexer().catch_up()
    box.uplink._seal_closed()
    box.uplink._find_pending()
    return box.pack_ids()


def _attempts(box: Box, wait_max_s: float, backoff: Backoff | None = None) -> float:
    """Do what a worker does until nothing waits or so many seconds would have passed."""
    uplink, waited_s = box.uplink, 0.0
    backoff = backoff or Backoff(source=random.Random(1))
    while uplink._waiting and waited_s < wait_max_s:
        waited_s += uplink._upload_one(*uplink._take(), backoff)
        uplink._find_pending()
    return waited_s


def _finish(box: Box) -> None:
    """Bring all that waits to verified."""
    _attempts(box, HOUR_S)
    box.write_ledger()
    assert [box.pack(each).state for each in box.pack_ids()] == ["cached"] * len(box.pack_ids())
    assert box.uplink.problems() == []


def _problems(box: Box) -> dict[str, str]:
    return {each.condition: f"{each.sentence} {each.hint}" for each in box.uplink.problems()}


def _versions(box: Box, prefix: str = "") -> list[str]:
    return [each.key for each in box.store.versions(prefix)]


def _each_once(box: Box) -> bool:
    keys = _versions(box)
    return len(keys) == len(set(keys)) > 0


@pytest.mark.parametrize("fault", [staged_s3.SLOW_DOWN, staged_s3.INTERNAL], ids=_name)
def test_an_hour_of_refusals_is_no_storm(box: Box, staged: StagedS3, fault: Fault) -> None:
    """Full jitter up to a minute: some two requests a minute, however long it lasts."""
    _pending(box)
    staged.always("PutObject", fault)
    waited_s = _attempts(box, HOUR_S)
    assert waited_s >= HOUR_S
    assert staged.count() < 2.5 * waited_s / 60
    assert fault.name.split()[0] in _problems(box)["cloud"]
    staged.clear()
    _finish(box)
    assert _each_once(box)


@pytest.mark.parametrize(
    "operation", ["PutObject", "HeadObject", "ListObjectVersions", "HeadBucket"]
)
def test_a_lost_answer_of_any_request_makes_no_second_version(
    box: Box, staged: StagedS3, operation: str
) -> None:
    """The pack's way and the ledger's: what took effect unheard is settled, not done again."""
    _pending(box)
    box.store._requests._noted = None  # the bucket's clock is asked for
    staged.stage("PutObject", staged_s3.LOST, key="packs/")
    staged.stage("PutObject", staged_s3.LOST, key="ledger/")
    staged.stage(operation, *[staged_s3.LOST] * 2)
    _finish(box)
    assert _each_once(box)
    assert len(_versions(box, "ledger/")) == 2


def test_a_key_with_other_content_is_never_overwritten(box: Box, staged: StagedS3) -> None:
    """One named alarm, the pack stays pending, and the other packs go on."""
    first, second = _pending(box, 1, 2)
    key = pack_key(first)
    stranger = b"a stranger's"
    box.store.put(key, stranger, sha256=hashlib.sha256(stranger).digest())
    _attempts(box, HOUR_S)
    box.write_ledger()
    assert box.store.get(key) == stranger
    assert _versions(box, key) == [key]
    assert "Nothing was overwritten" in _problems(box)[f"pack:{first}"]
    assert [box.pack(first).state, box.pack(second).state] == ["pending", "cached"]
    asked = staged.count("PutObject", key)
    _attempts(box, HOUR_S)
    assert staged.count("PutObject", key) == asked, "it is tried again and again"


def test_a_conflicting_request_is_made_again(box: Box, staged: StagedS3) -> None:
    """409 ConditionalRequestConflict, of the pack's PUT and of the ledger's."""
    _pending(box)
    staged.stage("PutObject", staged_s3.CONFLICT, staged_s3.CONFLICT, key="packs/")
    staged.stage("PutObject", staged_s3.CONFLICT, key="ledger/")
    _finish(box)
    assert staged.count("PutObject") == 5
    assert _each_once(box)


def test_a_conflict_at_the_completion_begins_the_upload_anew(
    box: Box, staged: StagedS3, monkeypatch
) -> None:
    """S3 wants a multipart upload from its start after a 409."""
    monkeypatch.setattr(s3, "SINGLE_PUT_BYTES_MAX", 2**20)
    box.store_sample(sample(1, 1, 9 * 2**20))
    _pending(box, 2)
    staged.stage("CompleteMultipartUpload", staged_s3.CONFLICT)
    _finish(box)
    assert staged.count("CreateMultipartUpload") == 2
    assert staged.count("AbortMultipartUpload") == 1
    assert staged.count("UploadPart") == 2
    assert _each_once(box)


def test_bytes_changed_on_the_way_are_sent_again_and_named(box: Box, staged: StagedS3) -> None:
    """Three times damaged: the store refuses each, an alarm stands, then the right bytes arrive."""
    (pack_id,) = _pending(box)
    key = pack_key(pack_id)
    staged.stage("PutObject", *[staged_s3.FLIP] * 3, key=key)
    backoff = Backoff(source=random.Random(1))
    for _ in range(3):
        assert box.uplink._upload_one(*box.uplink._take(), backoff) > 0
        assert "reread" in _problems(box)["cloud"]
        assert _versions(box, key) == []
        box.uplink._find_pending()
    spool = Path(box.layout.spool_path(pack_id)).read_bytes()
    _finish(box)
    assert staged.count("PutObject", key) == 4
    assert box.store.get(key) == spool


def test_a_portal_is_never_taken_for_the_bucket(box: Box, staged: StagedS3) -> None:
    """200 with a page to every request: nothing counts as stored, nothing goes on its word."""
    (pack_id,) = _pending(box)
    _finish(box)
    _pending(box, 2)
    staged.always("", staged_s3.PORTAL)
    _attempts(box, 60.0)
    assert "portal" in _problems(box)["cloud"]
    with pytest.raises(CloudUnavailable):
        box.evictor.evict_pack(pack_id)
    assert pack_id in box.sealed_ids()
    staged.clear()
    _finish(box)
    assert _each_once(box)


def test_a_redirect_abroad_is_refused_and_nothing_is_sent_there(box: Box, staged: StagedS3) -> None:
    """The region is pinned: neither the pack nor a question reaches the other host."""
    with StubStore(lambda _: error("500 Internal Server Error", "InternalError")) as abroad:
        _pending(box)
        staged.always("", staged_s3.elsewhere(abroad.url.removeprefix("http://")))
        box.store._requests._noted = None
        waited_s = _attempts(box, HOUR_S)
        assert "cloud.region" in _problems(box)["cloud"]
        assert staged.count() <= 2 * waited_s / 60
        watch = BucketWatch(box.clock, box.store, needs_lock=True)
        watch.look()
        assert not watch.trusted
        assert abroad.asked == []


@pytest.mark.parametrize(
    "fault", [staged_s3.EXPIRED, staged_s3.REVOKED, staged_s3.DENIED], ids=_name
)
def test_refused_credentials_hold_the_queue(box: Box, staged: StagedS3, fault: Fault) -> None:
    """A try a minute and an alarm that says what is wanting; with new credentials all goes on."""
    _pending(box, 1, 2)
    staged.always("PutObject", fault)
    waited_s = _attempts(box, HOUR_S)
    assert staged.count("PutObject") <= 1 + waited_s / 60
    text = _problems(box)["cloud"]
    assert "credentials" in text or "access key" in text
    staged.clear()
    _finish(box)
    assert _each_once(box)


def _watched(box: Box) -> tuple[BucketWatch, Evictor]:
    watch = BucketWatch(box.clock, box.store, needs_lock=True)
    watch.look()
    evictor = Evictor(
        box.files, box.clock, box.layout, box.index, box.store, box.space, box.pins, 0.9, 0.8, watch
    )
    box.uplink._bucket = watch
    return watch, evictor


def test_a_bucket_that_goes_stops_eviction_at_once(box: Box, staged: StagedS3) -> None:
    """In the middle of the work: suspected by the first request, critical by the next look; all
    is kept, and nothing is created."""
    (first,) = _pending(box)
    watch, evictor = _watched(box)
    assert watch.trusted
    _finish(box)
    _pending(box, 2)
    staged.always("", staged_s3.NO_BUCKET)
    _attempts(box, 1.0)
    watch.look_if_due()
    assert not watch.trusted
    assert "never created" in _problems(box)["bucket"]
    box.space.capacity_bytes = 1
    assert evictor.keep_watermarks() == 0
    with pytest.raises(CloudMisconfigured):
        evictor.evict_pack(first)
    assert len(box.sealed_ids()) == 2
    assert not any(each.operation in {"PUT", "CreateBucket"} for each in staged.asked)
    staged.clear()
    watch.look()
    assert watch.trusted
    _finish(box)
    assert _each_once(box)


def test_a_lock_that_is_not_carried_is_no_verification(box: Box, staged: StagedS3) -> None:
    """The PUT is answered 200, the version has no lock: the pack stays pending, and says why."""
    (pack_id,) = _pending(box)
    staged.always("HeadObject", staged_s3.NO_LOCK)
    waited_s = _attempts(box, 10 * 60.0)
    assert "no lock" in _problems(box)["cloud"]
    assert box.pack(pack_id).state == "pending"
    assert staged.count("PutObject") <= 1 + waited_s / 60
    staged.clear()
    _finish(box)
    assert _each_once(box)


def test_a_lock_that_is_gone_keeps_the_pack_here(box: Box, staged: StagedS3) -> None:
    """Eviction asks anew: verified once is not evictable for ever."""
    (pack_id,) = _pending(box)
    _finish(box)
    staged.always("HeadObject", staged_s3.NO_LOCK)
    with pytest.raises(AzekuraError, match="lock"):
        box.evictor.evict_pack(pack_id)
    assert pack_id in box.sealed_ids()


# --- the way back


@pytest.fixture
def evicted(box: Box, staged: StagedS3) -> str:
    (pack_id,) = _pending(box)
    _finish(box)
    box.evictor.evict_pack(pack_id)
    staged.clear()
    return pack_id


@pytest.mark.parametrize(
    "fault",
    [
        staged_s3.SLOW_DOWN, staged_s3.INTERNAL, staged_s3.LOST, staged_s3.short(100),
        staged_s3.PORTAL, staged_s3.short(0),
    ],
    ids=_name,
)  # fmt: skip
def test_a_recall_outlives_answers_that_fail(
    box: Box, staged: StagedS3, evicted: str, fault: Fault
) -> None:
    """Cut short, refused or not the store's: asked again, and the bytes are those that came in."""
    staged.stage("GetObject", fault, fault)
    assert box.fetch() == {EACH.sop_instance_uid: EACH.dataset}
    assert 3 <= staged.count("GetObject") <= 4


@pytest.mark.parametrize(
    ("fault", "kind", "requests_max"),
    [
        (staged_s3.SLOW_DOWN, CloudUnavailable, 40),
        (staged_s3.PORTAL, CloudUnavailable, 40),
        (staged_s3.DENIED, CloudRefused, 4),
        (staged_s3.EXPIRED, CloudRefused, 4),
        (staged_s3.NO_BUCKET, CloudMisconfigured, 4),
    ],
    ids=_name,
)
def test_a_recall_that_cannot_be_is_said_so_and_is_no_storm(
    box: Box, staged: StagedS3, evicted: str, fault: Fault, kind, requests_max: int
) -> None:
    """The reader hears the reason; what was tried is bounded; the next reader finds all well."""
    staged.always("GetObject", fault)
    (answer,) = box.fetch().values()
    assert isinstance(answer, kind)
    assert staged.count("GetObject") <= requests_max
    staged.clear()
    assert box.fetch() == {EACH.sop_instance_uid: EACH.dataset}


def test_a_damaged_copy_in_the_bucket_is_never_shown(
    box: Box, staged: StagedS3, evicted: str, s3_server: EmbeddedS3
) -> None:
    """Its seal fails: an error, no byte."""
    staged.always("GetObject", Fault("damaged", damages=True))
    (answer,) = box.fetch().values()
    assert isinstance(answer, AzekuraError)
    staged.clear()
    assert box.fetch() == {EACH.sop_instance_uid: EACH.dataset}
