"""Bodies too large for one PUT: sent in parts, and gone on with after a restart.

Owns: the life of a multipart upload. Must not: keep state of its own; what a restart needs is
given to `checkpoint`.

Invariants:
- The far side checks each part's CRC32 as it comes and the CRC32 of the whole object when it is
  completed; so a part left from before a restart is checked too.
- The local bytes are hashed again while they are sent: a body that isn't what its sha256 says is
  never completed.
- Create-only is decided when the upload is completed; the HEAD before only saves the line.
- An upload that can't be gone on with is aborted; one that nobody remembers becomes an orphan,
  which `orphan_uploads` finds.
"""

import contextlib
import hashlib
import zlib
from typing import Any

from appliance.foundation.errors import (
    AzekuraError,
    CloudError,
    CloudRefused,
    CloudUnavailable,
    Damaged,
    ObjectExists,
    ObjectMissing,
)
from appliance.remote.s3_body import open_body
from appliance.remote.s3_errors import PORTAL_HINT
from appliance.remote.s3_requests import S3Requests, lock_parameters
from appliance.remote.store import (
    Body,
    Checkpoint,
    Checksum,
    FileBody,
    Lane,
    Lock,
    PutResult,
    UploadProgress,
    body_size_bytes,
    read_pieces,
)

PART_BYTES_LEAST = 8 * 1024 * 1024
PART_BYTES_MOST = 64 * 1024 * 1024
PART_S = 30.0
PARTS_MAX = 9_000  # S3 takes 10,000
LIST_PAGES_MAX = 11


def part_size_bytes(size_bytes: int, rate_bytes_per_s: float | None) -> int:
    """Return the size of parts: what half a minute sends, so that a cut line costs no more."""
    wanted = PART_BYTES_MOST if rate_bytes_per_s is None else int(rate_bytes_per_s * PART_S)
    wanted = min(PART_BYTES_MOST, max(PART_BYTES_LEAST, wanted))
    return max(wanted, -(-size_bytes // PARTS_MAX))


class MultipartUpload:
    """One upload of one body, used by one thread."""

    def __init__(
        self,
        requests: S3Requests,
        key: str,
        body: Body,
        *,
        sha256: bytes,
        create_only: bool,
        lock: Lock | None,
        lane: Lane,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._requests = requests
        self._key = key
        self._body = body
        self._sha256 = sha256
        self._create_only = create_only
        self._lock = lock
        self._lane = lane
        self._checkpoint = checkpoint
        self._whole_crc32 = 0
        self._whole_sha256 = hashlib.sha256()

    def run(self, resume: UploadProgress | None, part_bytes: int) -> PutResult:
        """Upload and return the version; an upload that can't be gone on with is aborted."""
        if self._create_only:
            self._refuse_taken_key()
        present: dict[int, Any] = {}
        if resume is not None:
            found = self._parts_present(resume)
            if found is None:
                resume = None
            else:
                present = found
        progress = resume or self._begin(part_bytes)
        try:
            parts = self._send_parts(progress, present)
            result = self._complete(progress, parts)
        except AzekuraError as error:
            if not self._may_go_on(error):
                self._abandon(progress)
            raise
        if self._checkpoint is not None:
            self._checkpoint(None)
        return result

    def _send(self, operation: str, qualifier: str = "", **parameters: Any) -> Any:
        return self._requests.send(
            operation,
            self._key,
            self._lane,
            qualifier,
            Key=self._requests.full_key(self._key),
            **parameters,
        )

    def _refuse_taken_key(self) -> None:
        try:
            self._send("HeadObject")
        except ObjectMissing:
            return
        raise ObjectExists("CompleteMultipartUpload", self._key, "the key is taken")

    def _begin(self, part_bytes: int) -> UploadProgress:
        answer = self._send(
            "CreateMultipartUpload",
            "lock" if self._lock else "",
            ContentType="application/octet-stream",
            ChecksumAlgorithm="CRC32",
            ChecksumType="FULL_OBJECT",
            **lock_parameters(self._lock),
        )
        if not answer.get("UploadId"):
            raise CloudUnavailable("CreateMultipartUpload", self._key, "no id", PORTAL_HINT)
        progress = UploadProgress(answer["UploadId"], part_bytes)
        if self._checkpoint is not None:
            self._checkpoint(progress)
        return progress

    def _parts_present(self, progress: UploadProgress) -> dict[int, Any] | None:
        """Return the parts that the far side has, by number; None when the upload is gone."""
        present: dict[int, Any] = {}
        marker: dict[str, Any] = {}
        for _ in range(LIST_PAGES_MAX):
            try:
                answer = self._send("ListParts", UploadId=progress.upload_id, **marker)
            except ObjectMissing:
                return None
            present.update({part["PartNumber"]: part for part in answer.get("Parts", ())})
            if not answer.get("IsTruncated"):
                return present
            marker = {"PartNumberMarker": answer["NextPartNumberMarker"]}
        raise CloudUnavailable("ListParts", self._key, "a listing without an end")

    def _send_parts(
        self, progress: UploadProgress, present: dict[int, Any]
    ) -> list[dict[str, Any]]:
        size_bytes = body_size_bytes(self._body)
        starts = range(0, size_bytes, progress.part_size_bytes)
        return [
            self._send_part(
                progress.upload_id,
                number,
                self._slice(start, min(progress.part_size_bytes, size_bytes - start)),
                present.get(number),
            )
            for number, start in enumerate(starts, 1)
        ]

    def _slice(self, start: int, size_bytes: int) -> Body:
        if isinstance(self._body, bytes):
            return self._body[start : start + size_bytes]
        return FileBody(self._body.path, self._body.start + start, size_bytes)

    def _send_part(self, upload_id: str, number: int, part: Body, present: Any) -> dict[str, Any]:
        size_bytes = body_size_bytes(part)
        checksum = Checksum.of_crc32(self._hash(part)).value
        if present is not None and present["Size"] == size_bytes:
            told = present.get("ChecksumCRC32")
            if told is None or told == checksum:
                return _named(number, present["ETag"], checksum)
        with open_body(part) as content:
            answer = self._send(
                "UploadPart",
                UploadId=upload_id,
                PartNumber=number,
                Body=content,
                ContentLength=size_bytes,
                ChecksumCRC32=checksum,
            )
        if not answer.get("ETag"):
            raise CloudUnavailable("UploadPart", self._key, "no ETag", PORTAL_HINT)
        return _named(number, answer["ETag"], checksum)

    def _hash(self, part: Body) -> int:
        crc32 = 0
        for piece in read_pieces(part):
            crc32 = zlib.crc32(piece, crc32)
            self._whole_crc32 = zlib.crc32(piece, self._whole_crc32)
            self._whole_sha256.update(piece)
        return crc32

    def _complete(self, progress: UploadProgress, parts: list[dict[str, Any]]) -> PutResult:
        if self._whole_sha256.digest() != self._sha256:
            raise Damaged(
                "upload",
                self._key,
                "the local bytes are not what they were when they were hashed",
                "Check the disk",
            )
        checksum = Checksum.of_crc32(self._whole_crc32)
        answer = self._send(
            "CompleteMultipartUpload",
            UploadId=progress.upload_id,
            MultipartUpload={"Parts": parts},
            ChecksumCRC32=checksum.value,
            ChecksumType="FULL_OBJECT",
            MpuObjectSize=body_size_bytes(self._body),
            **({"IfNoneMatch": "*"} if self._create_only else {}),
        )
        if not answer.get("ETag"):
            raise CloudUnavailable("CompleteMultipartUpload", self._key, "no ETag", PORTAL_HINT)
        return PutResult(answer.get("VersionId") or "", answer["ETag"].strip('"'), checksum)

    def _may_go_on(self, error: AzekuraError) -> bool:
        if self._checkpoint is None or not isinstance(error, CloudUnavailable | CloudRefused):
            return False
        # After a conflict S3 wants the upload from its start.
        return "ConditionalRequestConflict" not in error.cause

    def _abandon(self, progress: UploadProgress) -> None:
        if self._checkpoint is not None:
            self._checkpoint(None)
        with contextlib.suppress(CloudError):
            self._send("AbortMultipartUpload", UploadId=progress.upload_id)


def _named(number: int, etag: str, checksum: str) -> dict[str, Any]:
    return {"PartNumber": number, "ETag": etag, "ChecksumCRC32": checksum}
