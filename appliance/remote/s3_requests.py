"""Requests to one bucket: each sent once, its failure translated, its answer proved to be S3's.

Owns: the boto3 client and the bucket's clock. Must not: retry, or know what a request is for.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, TypeVar

from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from appliance.foundation.clock import Clock
from appliance.foundation.errors import (
    CloudError,
    CloudMisconfigured,
    CloudUnavailable,
    ObjectMissing,
)
from appliance.remote.s3_client import S3Settings, make_client
from appliance.remote.s3_connection import LineTimeouts, sending_in
from appliance.remote.s3_download import Download, Downloads
from appliance.remote.s3_errors import (
    PORTAL_HINT,
    answered_by_store,
    asks_to_slow_down,
    translate,
)
from appliance.remote.store import Checksum, Lane, Lock
from appliance.remote.throttle import Throttle

T = TypeVar("T")

CLOCK_TRUSTED_S = 60.0
_FAILURES = (
    ClientError, BotoCoreError, ResponseParserError, HTTPError, HTTPException, OSError,
)  # fmt: skip


class S3Requests:
    """A client bound to a bucket and a prefix. Safe from many threads."""

    def __init__(self, settings: S3Settings, throttle: Throttle, clock: Clock) -> None:
        self.bucket = settings.bucket
        self.region = settings.region
        self._prefix = settings.prefix
        self._clock = clock
        self._throttle = throttle
        timeouts = LineTimeouts(throttle)
        self._client, credentials = make_client(settings, throttle, timeouts)
        self._downloads = Downloads(self._client, credentials, settings.bucket, timeouts, clock)
        # (the bucket's time, our monotonic time when it came): one tuple, replaced as a whole.
        self._noted: tuple[datetime, float] | None = None

    def full_key(self, key: str) -> str:
        """Return the key as the bucket knows it."""
        return self._prefix + key

    def send(
        self, operation: str, key: str, lane: Lane, qualifier: str = "", **parameters: Any
    ) -> Any:
        """Send one request and return boto3's answer; CloudError for anything but success.

        `operation` is S3's name; `key` is ours, for the error; `qualifier` (`lock`, `version`)
        tells which permission a refusal names.
        """
        method = getattr(self._client, xform_name(operation))
        try:
            with sending_in(lane):
                answer = method(Bucket=self.bucket, **parameters)
        except _FAILURES as failure:
            raise self._error(operation, key, failure, qualifier) from failure
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        if not answered_by_store(headers):
            if "Body" in answer:
                answer["Body"].close()
            raise CloudUnavailable(operation, key, "the answer is not S3's", PORTAL_HINT)
        self._note_time(headers)
        return answer

    def download(
        self,
        key: str,
        lane: Lane,
        version_id: str | None,
        span: tuple[int, int | None],
        read: Callable[[Download], T],
    ) -> T:
        """Return what `read` makes of bytes `[start, end)`, the span; CloudError else."""
        try:
            with sending_in(lane):
                return read(self._downloads.open(self.full_key(key), key, version_id, *span))
        except _FAILURES as failure:
            qualifier = "version" if version_id else ""
            raise self._error("GetObject", key, failure, qualifier) from failure

    def _error(self, operation: str, key: str, failure: Exception, qualifier: str) -> CloudError:
        if asks_to_slow_down(failure):
            self._throttle.slow_down()
        error = translate(operation, key, failure, qualifier)
        if isinstance(error, ObjectMissing) and operation == "HeadObject":
            # A HEAD has no body that could tell a missing key from a missing bucket.
            try:
                self.send("HeadBucket", "", Lane.URGENT)
            except CloudMisconfigured as gone:
                return gone
            except CloudError:
                return error
        return error

    def _note_time(self, headers: Any) -> None:
        try:
            at = parsedate_to_datetime(headers["date"])
        except (KeyError, ValueError):
            return
        self._noted = (at.astimezone(UTC), self._clock.monotonic_s())

    def server_time(self) -> datetime:
        """Return the bucket's own clock, from an answer of the last minute or a fresh one."""
        noted = self._noted
        if noted is None or self._clock.monotonic_s() - noted[1] > CLOCK_TRUSTED_S:
            self._noted = None
            self.send("HeadBucket", "", Lane.URGENT)
            noted = self._noted
        if noted is None:
            raise CloudUnavailable("HeadBucket", "", "an answer without a date", PORTAL_HINT)
        at, monotonic_s = noted
        return at + timedelta(seconds=self._clock.monotonic_s() - monotonic_s)


def lock_parameters(lock: Lock | None) -> dict[str, Any]:
    """Return the parameters that store a version under Object Lock."""
    if lock is None:
        return {}
    return {"ObjectLockMode": lock.mode, "ObjectLockRetainUntilDate": lock.until}


def stored_checksum(answer: Any) -> Checksum:
    """Return the checksum that an answer of HeadObject or a completed upload carries."""
    sha256 = answer.get("ChecksumSHA256")
    if sha256:
        # A composite value ends in the count of its parts; not every store says the type.
        composite = "-" in sha256 or answer.get("ChecksumType") == "COMPOSITE"
        return Checksum("sha256-composite" if composite else "sha256", sha256)
    crc32 = answer.get("ChecksumCRC32")
    if crc32 and "-" not in crc32 and answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
        return Checksum("crc32", crc32)
    for name in ("ChecksumCRC64NVME", "ChecksumCRC32C", "ChecksumSHA1", "ChecksumCRC32"):
        if answer.get(name):
            return Checksum("other", answer[name])
    return Checksum("", "")
