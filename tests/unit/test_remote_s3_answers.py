"""What each answer of a store, or of what stands in its place, is taken for."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from appliance.config.model import Cloud
from appliance.foundation.clock import SystemClock
from appliance.foundation.errors import (
    ChecksumRejected,
    CloudMisconfigured,
    CloudRefused,
    CloudUnavailable,
    Damaged,
    ObjectArchived,
    ObjectExists,
    ObjectMissing,
)
from appliance.remote.s3 import S3Store
from appliance.remote.s3_client import Credentials, S3Settings, systemd_credentials_file
from appliance.remote.store import FileBody, Lane, Lock
from appliance.remote.throttle import ConstantRate, Throttle
from tests.support.manual_clock import ManualClock
from tests.support.stub_store import DATE, Asked, StubStore, answer, error

SECRET = "wJalr-secret-that-must-not-show"
BODY = b"0123456789" * 20
DIGEST = hashlib.sha256(BODY).digest()


def make_store(url: str, clock=None, throttle: Throttle | None = None, **options) -> S3Store:
    clock = clock or SystemClock()
    settings = S3Settings(
        bucket="archive",
        region="ap-northeast-1",
        endpoint_url=url,
        prefix="site/",
        **({"credentials": Credentials("AKIDEXAMPLE", SECRET)} | options),
    )
    return S3Store(settings, throttle or Throttle(ConstantRate(None), UTC, clock), clock)


def put(store: S3Store, key: str = "k", **options):
    return store.put(key, BODY, sha256=DIGEST, **options)


@pytest.mark.parametrize(
    ("told", "kind", "hint"),
    [
        (error("412 Precondition Failed", "PreconditionFailed"), ObjectExists, ""),
        (error("409 Conflict", "ConditionalRequestConflict"), CloudUnavailable, "tried again"),
        (error("409 Conflict", "OperationAborted"), CloudUnavailable, "tried again"),
        (error("403 Forbidden", "AccessDenied"), CloudRefused, "s3:PutObjectRetention"),
        (error("403 Forbidden", "InvalidAccessKeyId"), CloudRefused, "revoked"),
        (error("403 Forbidden", "SignatureDoesNotMatch"), CloudRefused, "secret key"),
        (error("403 Forbidden", "RequestTimeTooSkewed"), CloudRefused, "clock"),
        (error("400 Bad Request", "ExpiredToken"), CloudRefused, "expired"),
        (error("404 Not Found", "NoSuchBucket"), CloudMisconfigured, "never created"),
        (
            error("301 Moved Permanently", "PermanentRedirect", Location="http://elsewhere.test/"),
            CloudMisconfigured,
            "region",
        ),
        (
            error("307 Temporary Redirect", "TemporaryRedirect", Location="http://elsewhere.test/"),
            CloudMisconfigured,
            "region",
        ),
        (
            error(
                "400 Bad Request",
                "AuthorizationHeaderMalformed",
                "<Region>us-west-2</Region>",
            ),
            CloudMisconfigured,
            "us-west-2",
        ),
        (error("400 Bad Request", "BadDigest"), ChecksumRejected, "reread"),
        (error("400 Bad Request", "XAmzContentChecksumMismatch"), ChecksumRejected, ""),
        (error("400 Bad Request", "InvalidPart"), ChecksumRejected, ""),
        (error("400 Bad Request", "InvalidRequest"), CloudMisconfigured, ""),
        (error("503 Slow Down", "SlowDown"), CloudUnavailable, "slow down"),
        (error("503 Service Unavailable", "ServiceUnavailable"), CloudUnavailable, "overloaded"),
        (error("500 Internal Server Error", "InternalError"), CloudUnavailable, ""),
        (answer("502 Bad Gateway", b"<html>", store=False), CloudUnavailable, ""),
        (answer("200 OK", b"<html>Sign in</html>", store=False), CloudUnavailable, "captive"),
        (answer("200 OK", b""), CloudUnavailable, "captive"),  # no ETag
        (
            answer("302 Found", b"", store=False, Location="http://portal.test/"),
            CloudUnavailable,
            "captive",
        ),
        (answer("403 Forbidden", b"<html>Blocked", store=False), CloudUnavailable, "captive"),
        (answer("511 Network Authentication Required", b"", store=False), CloudUnavailable, ""),
        (b"", CloudUnavailable, "WAN"),
    ],
)
def test_answer_to_a_put_is_translated(told, kind, hint):
    """Each answer is one kind of error with its hint, after exactly one request."""
    with StubStore(lambda _: told) as stub:
        lock = Lock("COMPLIANCE", datetime(2031, 1, 1, tzinfo=UTC))
        with pytest.raises(kind) as caught:
            put(make_store(stub.url), lock=lock)
        assert type(caught.value) is kind
        assert hint in caught.value.hint
        assert len(stub.asked) == 1
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "kind", "hint"),
    [
        (error("404 Not Found", "NoSuchKey"), ObjectMissing, ""),
        (error("404 Not Found", "NoSuchVersion"), ObjectMissing, ""),
        (error("403 Forbidden", "InvalidObjectState"), ObjectArchived, "lifecycle"),
        (error("403 Forbidden", "AccessDenied"), CloudRefused, "s3:GetObjectVersion"),
        (error("416 Range Not Satisfiable", "InvalidRange"), CloudMisconfigured, ""),
        (error("503 Slow Down", "SlowDown"), CloudUnavailable, ""),
        (answer("200 OK", b"<html>Sign in</html>", store=False), CloudUnavailable, "captive"),
        (answer("200 OK", BODY), CloudUnavailable, "captive"),  # the range was ignored
        (
            answer("206 Partial Content", b"01234", Content_Range="bytes 0-4/9"),
            CloudUnavailable,
            "",
        ),
        (
            answer("206 Partial Content", b"0123456789", Content_Range="bytes 5-14/99"),
            CloudUnavailable,
            "",
        ),
        (
            answer(
                "206 Partial Content",
                b"01234",
                length=10,
                Content_Range="bytes 0-9/99",
                Connection="close",
            ),
            CloudUnavailable,
            "WAN",
        ),
        (answer("404 Not Found", b"<html>", store=False), CloudUnavailable, "captive"),
        (b"", CloudUnavailable, "WAN"),
    ],
)
def test_answer_to_a_ranged_get_is_translated(told, kind, hint):
    """No answer yields other bytes than those asked for."""
    with StubStore(lambda _: told) as stub:
        store = make_store(stub.url)
        with pytest.raises(kind) as caught:
            store.get("k", "v1", 0, 10)
        assert type(caught.value) is kind
        assert hint in caught.value.hint
        with pytest.raises(kind):
            store.get_into(bytearray(10), "k", "v1", 0)
        assert len(stub.asked) == 2


@pytest.mark.parametrize(
    "told",
    [
        answer("202 Accepted"),
        answer("200 OK"),
        error("409 Conflict", "RestoreAlreadyInProgress"),
        error("403 Forbidden", "InvalidObjectState"),
    ],
)
def test_restore_asks_for_a_version_and_may_be_repeated(told):
    """Asked already, or archived no longer: neither is an error."""
    with StubStore(lambda _: told) as stub:
        make_store(stub.url).restore("k", "v1", 7)
    (asked,) = stub.asked
    assert (asked.method, "restore" in asked.path, "versionId=v1" in asked.path) == (
        "POST",
        True,
        True,
    )
    assert b"<Days>7</Days>" in asked.body


def test_restore_without_the_right_names_the_permission():
    denied = error("403 Forbidden", "AccessDenied")
    with (
        StubStore(lambda _: denied) as stub,
        pytest.raises(CloudRefused, match="s3:RestoreObject"),
    ):
        make_store(stub.url).restore("k", "v1", 7)


def test_credentials_come_from_a_profile(monkeypatch, tmp_path):
    """A replica's own, whatever the environment says; one that is not there is named."""
    file = tmp_path / "credentials"
    file.write_text("[copy]\naws_access_key_id = ID\naws_secret_access_key = SECRET\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with StubStore(lambda _: answer("200 OK", BODY)) as stub:
        make_store(stub.url, credentials=None, profile="copy").get("k", "v1")
        assert "Credential=ID/" in stub.asked[0].headers["authorization"]
        with pytest.raises(CloudRefused, match="no such profile"):
            make_store(stub.url, credentials=None, profile="else")


def test_head_of_a_missing_key_is_told_from_a_missing_bucket():
    """A HEAD has no body: the bucket is asked too."""
    bucket = answer("200 OK")

    def respond(asked: Asked) -> bytes:
        return answer("404 Not Found") if asked.path.startswith("/archive/site") else bucket

    with StubStore(respond) as stub:
        store = make_store(stub.url)
        with pytest.raises(ObjectMissing):
            store.head("k")
        bucket = answer("404 Not Found")
        with pytest.raises(CloudMisconfigured, match="NoSuchBucket"):
            store.head("k")


def test_redirect_is_not_followed():
    """Nothing is sent to another host, whatever the answer says."""
    with StubStore(lambda _: b"") as elsewhere:
        redirect = error(
            "301 Moved Permanently",
            "PermanentRedirect",
            Location=f"{elsewhere.url}/archive/k",
            x_amz_bucket_region="us-west-2",
        )
        with StubStore(lambda _: redirect) as stub:
            store = make_store(stub.url)
            for ask in (
                lambda: put(store),
                lambda: store.get("k", None, 0, 5),
                lambda: store.head("k"),
                lambda: list(store.versions()),
            ):
                with pytest.raises(CloudMisconfigured):
                    ask()
            assert [finding.condition for finding in store.check_bucket()] == ["wrong_region"]
            assert len(stub.asked) == 5
        assert elsewhere.asked == []


def test_put_sends_checksum_condition_and_lock():
    """The request is what the design says, with the body sent once."""
    with StubStore(lambda _: answer("200 OK", ETag='"e"', x_amz_version_id="v1")) as stub:
        lock = Lock("COMPLIANCE", datetime(2031, 1, 1, tzinfo=UTC))
        result = put(make_store(stub.url), "packs/a", lock=lock)
        assert (result.version_id, result.etag) == ("v1", "e")
        (asked,) = stub.asked
    assert (asked.method, asked.path, asked.body) == ("PUT", "/archive/site/packs/a", BODY)
    assert asked.headers["if-none-match"] == "*"
    assert asked.headers["x-amz-checksum-sha256"] == result.checksum.value
    assert asked.headers["x-amz-object-lock-mode"] == "COMPLIANCE"
    assert asked.headers["x-amz-object-lock-retain-until-date"].startswith("2031-01-01T00:00:00")
    signed = asked.headers["authorization"]
    assert "AWS4-HMAC-SHA256" in signed
    assert "ap-northeast-1/s3" in signed
    for header in ("if-none-match", "x-amz-checksum-sha256", "x-amz-object-lock-mode"):
        assert header in signed


def test_put_without_create_only_sends_no_condition():
    """A heartbeat overwrites."""
    with StubStore(lambda _: answer("200 OK", ETag='"e"')) as stub:
        put(make_store(stub.url), create_only=False)
        assert "if-none-match" not in stub.asked[0].headers


def test_shrunken_file_is_damage_not_a_short_upload(tmp_path):
    """A spool that lost its end is never sent."""
    path = tmp_path / "spool"
    path.write_bytes(BODY[:50])
    with StubStore(lambda _: answer("200 OK", ETag='"e"')) as stub:
        with pytest.raises(Damaged):
            make_store(stub.url).put("k", FileBody(str(path), 0, len(BODY)), sha256=DIGEST)
        assert stub.asked == []


def test_dripping_download_is_given_up():
    """A far side that sends a little at a time does not hold a reader for ever."""
    clock = ManualClock()

    class Impatient(ManualClock):
        step_s = 40.0

        def monotonic_s(self) -> float:
            clock.advance(self.step_s)  # each look at the clock finds it later
            return clock.monotonic_s()

    told = answer("206 Partial Content", b"0123456789", Content_Range="bytes 0-9/99")
    with StubStore(lambda _: told) as stub:
        throttle = Throttle(ConstantRate(None), UTC, clock)
        impatient = Impatient()
        store = make_store(stub.url, impatient, throttle)
        assert store.get("k", None, 0, 10) == b"0123456789"  # one piece: in time
        span = "bytes 0-999999/9999999"
        slow = answer("206 Partial Content", b"x" * 1_000_000, Content_Range=span)
        stub.respond = lambda _: slow
        impatient.step_s = 400.0
        with pytest.raises(CloudUnavailable):
            store.get("k", None, 0, 1_000_000)


def test_server_time_is_the_buckets_and_is_kept_for_a_minute():
    """The Date header counts, not this box's clock."""
    clock = ManualClock(datetime(2099, 1, 1, tzinfo=UTC))
    with StubStore(lambda _: answer("200 OK", ETag='"e"')) as stub:
        store = make_store(stub.url, clock)
        assert store.server_time() == datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
        clock.advance(30)
        assert store.server_time() == datetime(2026, 3, 2, 3, 0, 30, tzinfo=UTC)
        assert len(stub.asked) == 1
        clock.advance(31)
        assert store.server_time() == datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
        assert len(stub.asked) == 2


def test_listing_that_does_not_go_on_ends():
    """A server that repeats a page for ever is found out."""
    page = (
        b"<ListVersionsResult><IsTruncated>true</IsTruncated><NextKeyMarker>site/a</NextKeyMarker>"
        b"<Version><Key>site/a</Key><VersionId>v</VersionId><IsLatest>true</IsLatest><Size>1</Size>"
        b"<LastModified>2026-03-02T03:00:00Z</LastModified></Version></ListVersionsResult>"
    )
    with StubStore(lambda _: answer("200 OK", page)) as stub:
        with pytest.raises(CloudUnavailable, match="does not go on"):
            list(make_store(stub.url).versions())
        assert len(stub.asked) == 2


def test_listing_answered_with_html_is_not_an_empty_bucket():
    """A portal's page is not a listing, marked or not."""
    for content in (b"<html><p>Sign in<br></html>", b"<html><p>Sign in</p></html>"):
        for store_marks in (True, False):
            page = answer("200 OK", content, store=store_marks)
            with StubStore(lambda _, page=page: page) as stub, pytest.raises(CloudUnavailable):
                list(make_store(stub.url).objects())


def test_portal_answers_no_head():
    """Headers of a web server describe no object of ours, and prove no bucket."""
    told = answer("200 OK", b"", store=False, Last_Modified=DATE, Date=DATE)
    with StubStore(lambda _: told) as stub:
        store = make_store(stub.url)
        for ask in (lambda: store.head("k"), store.check_bucket, store.server_time):
            with pytest.raises(CloudUnavailable) as caught:
                ask()
            assert "captive" in caught.value.hint


def test_slow_down_halves_the_throttle():
    """The store's wish reaches the throttle."""
    clock = ManualClock()
    throttle = Throttle(ConstantRate(1_000_000.0), UTC, clock)
    with StubStore(lambda _: error("503 Slow Down", "SlowDown")) as stub:
        with pytest.raises(CloudUnavailable):
            put(make_store(stub.url, clock, throttle))
        assert throttle.rate_now_bytes_per_s() == pytest.approx(500_000)


def test_bytes_sent_are_counted_at_the_socket():
    """Headers count, and a body is counted as often as it leaves."""
    throttle = Throttle(ConstantRate(None), UTC, SystemClock())
    with StubStore(lambda _: answer("200 OK", ETag='"e"')) as stub:
        put(make_store(stub.url, throttle=throttle), lane=Lane.BACKFILL)
        headers = sum(len(name) + len(value) + 4 for name, value in stub.asked[0].headers.items())
        expected = headers + len(BODY) + len("PUT /archive/site/k HTTP/1.1\r\n\r\n")
        assert throttle.sent_bytes == expected


def test_unreachable_endpoint_is_unavailable():
    """Nobody listens: a matter of the line."""
    with StubStore(lambda _: b"") as stub:
        url = stub.url
    with pytest.raises(CloudUnavailable, match="PutObject"):
        put(make_store(url))


def test_missing_credentials_are_named(monkeypatch, tmp_path):
    """No credentials anywhere: refused, with where they are looked for."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    clock = SystemClock()
    settings = S3Settings(bucket="archive", region="r", endpoint_url="http://127.0.0.1:9")
    store = S3Store(settings, Throttle(ConstantRate(None), UTC, clock), clock)
    for ask in (lambda: put(store), lambda: store.get("k")):
        with pytest.raises(CloudRefused) as caught:
            ask()
        assert "azekura-s3" in caught.value.hint


def test_credentials_come_from_a_systemd_credential(monkeypatch, tmp_path):
    """The file systemd hands over is read as an AWS credentials file."""
    path = tmp_path / "azekura-s3"
    path.write_text("[default]\naws_access_key_id = AKFILE\naws_secret_access_key = s\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert systemd_credentials_file() == str(path)
    clock = SystemClock()
    told = answer("206 Partial Content", b"01234", Content_Range="bytes 0-4/9")
    with StubStore(lambda _: told) as stub:
        settings = S3Settings(
            bucket="archive",
            region="r",
            endpoint_url=stub.url,
            credentials_file=systemd_credentials_file(),
        )
        store = S3Store(settings, Throttle(ConstantRate(None), UTC, clock), clock)
        assert store.get("k", None, 0, 5) == b"01234"
        assert "Credential=AKFILE/" in stub.asked[0].headers["authorization"]


def test_unreadable_credentials_file_is_refused(tmp_path):
    """Named at once, not at the first upload."""
    clock = SystemClock()
    settings = S3Settings(
        bucket="b", region="r", endpoint_url="http://x", credentials_file=str(tmp_path / "none")
    )
    with pytest.raises(CloudRefused):
        S3Store(settings, Throttle(ConstantRate(None), UTC, clock), clock)


def test_aws_without_a_region_is_refused():
    """AWS needs the region, which is pinned."""
    clock = SystemClock()
    with pytest.raises(CloudMisconfigured, match="region"):
        S3Store(S3Settings(bucket="b"), Throttle(ConstantRate(None), UTC, clock), clock)


def test_aws_bucket_is_addressed_in_its_region_by_host():
    """Virtual-host style at the regional endpoint, for boto3's requests and for ours."""
    clock = SystemClock()
    for bucket, expected in (
        ("hospital-a", "https://hospital-a.s3.ap-northeast-1.amazonaws.com/"),
        ("hospital.a", "https://s3.ap-northeast-1.amazonaws.com/hospital.a/"),
    ):
        settings = S3Settings(
            bucket=bucket, region="ap-northeast-1", credentials=Credentials("AK", "s")
        )
        store = S3Store(settings, Throttle(ConstantRate(None), UTC, clock), clock)
        assert store._requests._downloads._base_url == expected
        seen = []

        def intercept(request, seen=seen, **_):
            seen.append(request.url)
            raise OSError("not sent")

        store._requests._client.meta.events.register("before-send.s3", intercept)
        with pytest.raises(CloudUnavailable):
            put(store)
        assert seen == [expected + "k"]


def test_settings_are_those_of_the_configuration(monkeypatch):
    """The [cloud] table as it is written, and a throttle from its timetable."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    cloud = Cloud.model_validate(
        {
            "endpoint_url": "https://s3.example.test",
            "region": "ap-northeast-1",
            "bucket": "archive",
            "prefix": "radiology/",
            "throttle": {"rate": "8 Mbit/s"},
        }
    )
    assert S3Settings.of(cloud) == S3Settings(
        bucket="archive",
        region="ap-northeast-1",
        endpoint_url="https://s3.example.test",
        prefix="radiology/",
    )
    throttle = Throttle(cloud.throttle, UTC, ManualClock())
    assert throttle.rate_now_bytes_per_s() == 1_000_000


def test_secret_is_not_in_a_repr():
    """Credentials may be logged by accident."""
    assert SECRET not in repr(Credentials("AKIDEXAMPLE", SECRET))
    assert SECRET not in repr(S3Settings(bucket="b", credentials=Credentials("A", SECRET)))


def test_timeouts_follow_from_the_rate():
    """A slow line gets time to drain what is on the way; a fast one fails early."""
    from appliance.remote.s3_connection import LineTimeouts

    clock = ManualClock()

    def timeout_s(rate: float | None) -> float:
        return LineTimeouts(Throttle(ConstantRate(rate), UTC, clock)).read_timeout_s()

    assert timeout_s(None) == 30
    assert 30 < timeout_s(125_000.0) < 60
    assert timeout_s(1000.0) == 180


def test_orphans_of_our_prefix_past_their_age_are_aborted():
    """Younger ones and remembered ones stay."""
    from appliance.remote.orphans import abort_orphans

    def upload(name: str, at: str) -> str:
        return (
            f"<Upload><Key>site/{name}</Key><UploadId>{name}</UploadId>"
            f"<Initiated>{at}</Initiated></Upload>"
        )

    listing = (
        "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>"
        + upload("old", "2026-03-01T02:00:00Z")
        + upload("kept", "2026-03-01T02:00:00Z")
        + upload("young", "2026-03-01T04:00:00Z")
        + "</ListMultipartUploadsResult>"
    ).encode()

    def respond(asked: Asked) -> bytes:
        return answer("200 OK", listing) if "uploads" in asked.path else answer("204 No Content")

    with StubStore(respond) as stub:
        store = make_store(stub.url, ManualClock())
        assert abort_orphans(store, {"kept"}, timedelta(days=1).total_seconds()) == 1
        deleted = [asked.path for asked in stub.asked if asked.method == "DELETE"]
        assert deleted == ["/archive/site/old?uploadId=old"]
        assert any("prefix=site" in asked.path for asked in stub.asked)
