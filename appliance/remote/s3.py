"""One bucket of S3, or of a store that speaks S3, under one prefix.

Owns: requests and what their answers mean. Must not: retry (the caller's back-off does), decide
what to do about an error, create or change a bucket.

Invariants:
- Those of `ObjectStore`; and an answer without S3's request id is not an answer of the store.
- The far side checks each body: sha256 in the header of a single PUT, CRC32 of the whole object
  for an upload in parts.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from appliance.foundation.clock import Clock
from appliance.foundation.errors import CloudUnavailable, ObjectArchived, ObjectMissing
from appliance.remote.bucket import inspect_bucket
from appliance.remote.multipart import MultipartUpload, part_size_bytes
from appliance.remote.s3_body import open_body
from appliance.remote.s3_client import S3Settings
from appliance.remote.s3_download import Download
from appliance.remote.s3_errors import PORTAL_HINT
from appliance.remote.s3_requests import S3Requests, lock_parameters, stored_checksum
from appliance.remote.store import (
    Body,
    BucketFinding,
    Checkpoint,
    Checksum,
    Lane,
    ListedObject,
    Lock,
    ObjectInfo,
    OrphanUpload,
    PutResult,
    UploadProgress,
    VersionInfo,
    body_size_bytes,
)
from appliance.remote.throttle import Throttle

SINGLE_PUT_BYTES_MAX = 128 * 1024 * 1024
PAGES_MAX = 1_000_000
# What a listing tells of where it stopped, and how the next page is asked for.
_MARKERS = {
    "ListObjectVersions": {
        "KeyMarker": "NextKeyMarker",
        "VersionIdMarker": "NextVersionIdMarker",
    },
    "ListObjectsV2": {"ContinuationToken": "NextContinuationToken"},
    "ListMultipartUploads": {
        "KeyMarker": "NextKeyMarker",
        "UploadIdMarker": "NextUploadIdMarker",
    },
}


class S3Store:
    """An ObjectStore on boto3. Safe to use from many threads: it keeps no state of a request."""

    def __init__(self, settings: S3Settings, throttle: Throttle, clock: Clock) -> None:
        self._throttle = throttle
        self._prefix = settings.prefix
        self._requests = S3Requests(settings, throttle, clock)

    # --- storing --------------------------------------------------------------------------

    def put(
        self,
        key: str,
        body: Body,
        *,
        sha256: bytes,
        create_only: bool = True,
        lock: Lock | None = None,
        lane: Lane = Lane.NEW,
        resume: UploadProgress | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> PutResult:
        """See ObjectStore. Up to 128 MiB in one request, above in parts."""
        if body_size_bytes(body) > SINGLE_PUT_BYTES_MAX:
            upload = MultipartUpload(
                self._requests,
                key,
                body,
                sha256=sha256,
                create_only=create_only,
                lock=lock,
                lane=lane,
                checkpoint=checkpoint,
            )
            rate_bytes_per_s = self._throttle.rate_now_bytes_per_s()
            return upload.run(resume, part_size_bytes(body_size_bytes(body), rate_bytes_per_s))
        checksum = Checksum.of_sha256(sha256)
        parameters = lock_parameters(lock)
        if create_only:
            parameters["IfNoneMatch"] = "*"
        with open_body(body) as content:
            answer = self._requests.send(
                "PutObject",
                key,
                lane,
                "lock" if lock else "",
                Key=self._requests.full_key(key),
                Body=content,
                ContentLength=body_size_bytes(body),
                ContentType="application/octet-stream",
                ChecksumSHA256=checksum.value,
                **parameters,
            )
        if not answer.get("ETag"):
            raise CloudUnavailable("PutObject", key, "an answer without an ETag", PORTAL_HINT)
        return PutResult(answer.get("VersionId") or "", answer["ETag"].strip('"'), checksum)

    def head(self, key: str, version_id: str | None = None) -> ObjectInfo:
        """See ObjectStore."""
        answer = self._requests.send(
            "HeadObject",
            key,
            Lane.URGENT,
            "version" if version_id else "",
            Key=self._requests.full_key(key),
            ChecksumMode="ENABLED",
            **_version(version_id),
        )
        mode, until = answer.get("ObjectLockMode"), answer.get("ObjectLockRetainUntilDate")
        return ObjectInfo(
            key=key,
            version_id=answer.get("VersionId") or "",
            size_bytes=answer["ContentLength"],
            etag=answer.get("ETag", "").strip('"'),
            checksum=stored_checksum(answer),
            lock=Lock(mode, until.astimezone(UTC)) if mode and until else None,
            last_modified_at=answer["LastModified"].astimezone(UTC),
            storage_class=answer.get("StorageClass") or "STANDARD",
            legal_hold=answer.get("ObjectLockLegalHoldStatus") == "ON",
        )

    # --- reading --------------------------------------------------------------------------

    def get(
        self,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        end: int | None = None,
        lane: Lane = Lane.URGENT,
    ) -> bytes:
        """See ObjectStore."""
        if end is not None and end <= start:
            raise ValueError(f"empty range {start}-{end}")
        return self._requests.download(key, lane, version_id, (start, end), _read_all)

    def get_into(
        self,
        buffer: bytearray | memoryview,
        key: str,
        version_id: str | None = None,
        start: int = 0,
        lane: Lane = Lane.URGENT,
    ) -> None:
        """See ObjectStore."""
        view = memoryview(buffer).cast("B")
        if not len(view):
            raise ValueError("empty buffer")
        span = (start, start + len(view))
        self._requests.download(key, lane, version_id, span, lambda found: found.read_into(view))

    # --- listing --------------------------------------------------------------------------

    def _pages(self, operation: str, prefix: str, **parameters: Any) -> Iterator[Any]:
        """Yield a listing's pages, each proved to go on from the one before."""
        markers = _MARKERS[operation]
        previous: Any = None
        for _ in range(PAGES_MAX):
            answer = self._requests.send(
                operation, prefix, Lane.NEW, Prefix=self._requests.full_key(prefix), **parameters
            )
            if "IsTruncated" not in answer:
                raise CloudUnavailable(operation, prefix, "the answer is no listing", PORTAL_HINT)
            yield answer
            if not answer["IsTruncated"]:
                return
            following = {ask: answer.get(told) for ask, told in markers.items()}
            if not any(following.values()) or following == previous:
                raise CloudUnavailable(operation, prefix, "a listing that does not go on")
            previous = following
            parameters.update({ask: marker for ask, marker in following.items() if marker})
        raise CloudUnavailable(operation, prefix, "a listing without an end")

    def versions(self, prefix: str = "", after_key: str = "") -> Iterator[VersionInfo]:
        """See ObjectStore."""
        parameters = {"KeyMarker": self._requests.full_key(after_key)} if after_key else {}
        for page in self._pages("ListObjectVersions", prefix, **parameters):
            found = [self._version_info(entry, marker=False) for entry in page.get("Versions", ())]
            found += [
                self._version_info(entry, marker=True) for entry in page.get("DeleteMarkers", ())
            ]
            # S3 mixes both by age; boto3 parts them. The sort is stable, so that versions of the
            # same second keep the order of the listing.
            found.sort(key=_newest_first)
            yield from found

    def _version_info(self, entry: Any, *, marker: bool) -> VersionInfo:
        return VersionInfo(
            key=entry["Key"].removeprefix(self._prefix),
            version_id=entry.get("VersionId") or "",
            is_latest=bool(entry.get("IsLatest")),
            is_delete_marker=marker,
            last_modified_at=entry["LastModified"].astimezone(UTC),
            size_bytes=entry.get("Size") or 0,
        )

    def oldest_version(self, key: str) -> VersionInfo | None:
        """See ObjectStore."""
        oldest = None
        for info in self.versions(key):
            # Keys that merely begin like this one are listed too.
            if info.key == key and not info.is_delete_marker:
                oldest = info
        return oldest

    def objects(self, prefix: str = "", after_key: str = "") -> Iterator[ListedObject]:
        """See ObjectStore."""
        parameters = {"StartAfter": self._requests.full_key(after_key)} if after_key else {}
        for page in self._pages("ListObjectsV2", prefix, **parameters):
            for entry in page.get("Contents", ()):
                yield ListedObject(
                    key=entry["Key"].removeprefix(self._prefix),
                    size_bytes=entry["Size"],
                    etag=entry.get("ETag", "").strip('"'),
                    last_modified_at=entry["LastModified"].astimezone(UTC),
                )

    # --- locks, deletion, the bucket --------------------------------------------------------

    def extend_lock(self, key: str, version_id: str, lock: Lock) -> None:
        """See ObjectStore."""
        self._requests.send(
            "PutObjectRetention",
            key,
            Lane.BACKFILL,
            Key=self._requests.full_key(key),
            VersionId=version_id,
            Retention={"Mode": lock.mode, "RetainUntilDate": lock.until},
            ChecksumAlgorithm="CRC32",
        )

    def set_legal_hold(self, key: str, version_id: str, *, on: bool) -> None:
        """See ObjectStore."""
        self._requests.send(
            "PutObjectLegalHold",
            key,
            Lane.BACKFILL,
            Key=self._requests.full_key(key),
            VersionId=version_id,
            LegalHold={"Status": "ON" if on else "OFF"},
            ChecksumAlgorithm="CRC32",
        )

    def restore(self, key: str, version_id: str, days: int) -> None:
        """See ObjectStore."""
        try:
            self._requests.send(
                "RestoreObject",
                key,
                Lane.NEW,
                Key=self._requests.full_key(key),
                VersionId=version_id,
                RestoreRequest={"Days": days, "GlacierJobParameters": {"Tier": "Standard"}},
            )
        except ObjectArchived:
            return  # InvalidObjectState of this request: it is archived no longer
        except CloudUnavailable as error:
            # 409 RestoreAlreadyInProgress
            if "RestoreAlreadyInProgress" not in error.cause:
                raise

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        """See ObjectStore."""
        parameters: dict[str, Any] = (
            {"BypassGovernanceRetention": True} if bypass_governance else {}
        )
        self._requests.send(
            "DeleteObject",
            key,
            Lane.NEW,
            Key=self._requests.full_key(key),
            VersionId=version_id,
            **parameters,
        )

    def server_time(self) -> datetime:
        """See ObjectStore."""
        return self._requests.server_time()

    def check_bucket(self) -> list[BucketFinding]:
        """See ObjectStore."""
        return inspect_bucket(self._requests)

    def orphan_uploads(self, older_than_s: float) -> Iterator[OrphanUpload]:
        """See ObjectStore."""
        before = self.server_time() - timedelta(seconds=older_than_s)
        for page in self._pages("ListMultipartUploads", ""):
            for entry in page.get("Uploads", ()):
                initiated_at = entry["Initiated"].astimezone(UTC)
                if initiated_at < before:
                    key = entry["Key"].removeprefix(self._prefix)
                    yield OrphanUpload(key, entry["UploadId"], initiated_at)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """See ObjectStore."""
        try:
            self._requests.send(
                "AbortMultipartUpload",
                key,
                Lane.NEW,
                Key=self._requests.full_key(key),
                UploadId=upload_id,
            )
        except ObjectMissing:
            return


def _version(version_id: str | None) -> dict[str, Any]:
    return {"VersionId": version_id} if version_id else {}


def _newest_first(info: VersionInfo) -> tuple[str, bool, float]:
    return info.key, not info.is_latest, -info.last_modified_at.timestamp()


def _read_all(download: Download) -> bytes:
    return download.read()
