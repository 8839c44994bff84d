"""Uploads in parts against the real server; the threshold is lowered so that they stay short."""

import hashlib
import os
from datetime import UTC, datetime, timedelta

import pytest

from appliance.foundation.errors import (
    ChecksumRejected,
    CloudUnavailable,
    Damaged,
    ObjectExists,
)
from appliance.remote import multipart, s3
from appliance.remote.multipart import part_size_bytes
from appliance.remote.orphans import abort_orphans
from appliance.remote.store import FileBody, Lock, UploadProgress, holds_body

PART = 5 * 1024 * 1024  # the least that S3 takes


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(s3, "SINGLE_PUT_BYTES_MAX", PART)
    monkeypatch.setattr(multipart, "PART_BYTES_LEAST", PART)
    monkeypatch.setattr(multipart, "PART_BYTES_MOST", PART)


@pytest.fixture
def content() -> bytes:
    return os.urandom(2 * PART + 12345)


@pytest.fixture
def body(tmp_path, content) -> FileBody:
    path = tmp_path / "spool"
    path.write_bytes(content)
    return FileBody.whole(str(path))


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


class Breaking:
    """Lets requests through and fails the N-th of one kind, before or after its effect."""

    def __init__(self, store, operation: str, number: int, *, after: bool = False) -> None:
        self._send = store._requests.send
        self._operation = operation
        self._left = number
        self._after = after
        self.sent: list[str] = []
        store._requests.send = self

    def __call__(self, operation, *arguments, **parameters):
        self.sent.append(operation)
        if operation == self._operation:
            self._left -= 1
            if self._left == 0:
                if self._after:
                    self._send(operation, *arguments, **parameters)
                raise CloudUnavailable(operation, "", "cut")
        return self._send(operation, *arguments, **parameters)


def uploads(store):
    return list(store.orphan_uploads(older_than_s=-3600))


def test_large_body_is_stored_with_its_crc32_and_lock(s3_store, body, content):
    """Full-object checksum, version and lock are read back; nothing is left over."""
    until = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    heard = []
    result = s3_store.put(
        "packs/big",
        body,
        sha256=digest(content),
        lock=Lock("GOVERNANCE", until),
        checkpoint=heard.append,
    )
    info = s3_store.head("packs/big", result.version_id)
    assert info.checksum == result.checksum
    assert info.checksum.kind == "crc32"
    assert info.lock == Lock("GOVERNANCE", until)
    assert holds_body(info, body)
    assert s3_store.get("packs/big", result.version_id) == content
    assert isinstance(heard[0], UploadProgress)
    assert heard[1:] == [None]
    assert uploads(s3_store) == []


def test_large_bytes_are_stored_too(s3_store, content):
    """Bytes and files are alike."""
    s3_store.put("packs/big", content, sha256=digest(content))
    assert s3_store.get("packs/big") == content


def test_cut_upload_goes_on_after_a_restart(s3_store, body, content):
    """Only the missing parts are sent again, and one version comes of it."""
    heard = []
    Breaking(s3_store, "UploadPart", 3)
    with pytest.raises(CloudUnavailable):
        s3_store.put("packs/big", body, sha256=digest(content), checkpoint=heard.append)
    assert len(heard) == 1
    watching = Breaking(s3_store, "none", 1)
    s3_store.put(
        "packs/big", body, sha256=digest(content), resume=heard[0], checkpoint=heard.append
    )
    assert watching.sent.count("UploadPart") == 1
    assert "CreateMultipartUpload" not in watching.sent
    assert heard[1:] == [None]
    assert s3_store.get("packs/big") == content
    assert len(list(s3_store.versions("packs/big"))) == 1


def test_upload_that_is_gone_is_begun_anew(s3_store, body, content):
    """An aborted upload's progress is worth nothing, and does no harm."""
    s3_store.put("packs/big", body, sha256=digest(content), resume=UploadProgress("0" * 40, PART))
    assert s3_store.get("packs/big") == content


def test_damaged_part_of_an_earlier_run_is_never_completed(s3_store, body, content):
    """The CRC32 of the whole object catches parts that hold other bytes."""
    heard = []
    Breaking(s3_store, "UploadPart", 3)
    with pytest.raises(CloudUnavailable):
        s3_store.put("packs/big", body, sha256=digest(content), checkpoint=heard.append)
    other = bytes([content[0] ^ 1]) + content[1:]
    with open(body.path, "wb") as file:
        file.write(other)
    with pytest.raises(ChecksumRejected):
        s3_store.put(
            "packs/big", body, sha256=digest(other), resume=heard[0], checkpoint=heard.append
        )
    assert s3_store.oldest_version("packs/big") is None
    assert heard[-1] is None
    assert uploads(s3_store) == []
    s3_store.put("packs/big", body, sha256=digest(other))
    assert s3_store.get("packs/big") == other


def test_body_that_rotted_on_the_disk_is_never_completed(s3_store, body, content):
    """The local bytes are hashed while they are sent."""
    with pytest.raises(Damaged):
        s3_store.put("packs/big", body, sha256=digest(b"what it was"))
    assert s3_store.oldest_version("packs/big") is None
    assert uploads(s3_store) == []


def test_taken_key_is_found_before_a_byte_of_the_body_is_sent(s3_store, body, content):
    """Create-only costs one HEAD, not the line."""
    s3_store.put("packs/big", b"other", sha256=digest(b"other"))
    watching = Breaking(s3_store, "none", 1)
    with pytest.raises(ObjectExists):
        s3_store.put("packs/big", body, sha256=digest(content))
    assert watching.sent == ["HeadObject"]


def test_key_taken_meanwhile_is_found_when_completing(s3_store, body, content):
    """If-None-Match decides at the end; the upload is aborted."""
    watching = Breaking(s3_store, "none", 1)
    send = watching._send

    def race(operation, *arguments, **parameters):
        if operation == "CompleteMultipartUpload":
            s3_store.put("packs/big", b"other", sha256=digest(b"other"))
        return send(operation, *arguments, **parameters)

    watching._send = race
    with pytest.raises(ObjectExists):
        s3_store.put("packs/big", body, sha256=digest(content))
    assert s3_store.get("packs/big") == b"other"
    assert len(list(s3_store.versions("packs/big"))) == 1
    assert uploads(s3_store) == []


def test_lost_answer_of_the_completion_is_settled(s3_store, body, content):
    """The retry finds the key taken, and the stored checksum says by us."""
    heard = []
    Breaking(s3_store, "CompleteMultipartUpload", 1, after=True)
    with pytest.raises(CloudUnavailable):
        s3_store.put("packs/big", body, sha256=digest(content), checkpoint=heard.append)
    with pytest.raises(ObjectExists):
        s3_store.put("packs/big", body, sha256=digest(content), resume=heard[0])
    assert holds_body(s3_store.head("packs/big"), body)


def test_failed_upload_that_nobody_remembers_is_aborted(s3_store, body, content):
    """Without a checkpoint nothing could go on with it."""
    Breaking(s3_store, "UploadPart", 2)
    with pytest.raises(CloudUnavailable):
        s3_store.put("packs/big", body, sha256=digest(content))
    assert uploads(s3_store) == []


def test_orphan_is_swept_and_a_remembered_upload_kept(s3_store, body, content):
    """What a dead process left behind goes; what a spool remembers stays."""
    heard = []
    for key in ("packs/a", "packs/b"):
        Breaking(s3_store, "UploadPart", 2)
        with pytest.raises(CloudUnavailable):
            s3_store.put(key, body, sha256=digest(content), checkpoint=heard.append)
    assert len(uploads(s3_store)) == 2
    assert abort_orphans(s3_store) == 0  # too young
    assert abort_orphans(s3_store, {heard[1].upload_id}, older_than_s=-3600) == 1
    assert [orphan.key for orphan in uploads(s3_store)] == ["packs/b"]


def test_part_size_follows_the_rate(monkeypatch):
    """Half a minute of the line, within bounds, and never more parts than S3 takes."""
    monkeypatch.undo()
    mib = 1024 * 1024
    assert part_size_bytes(200 * mib, None) == 64 * mib
    assert part_size_bytes(200 * mib, 125_000.0) == 8 * mib
    assert part_size_bytes(200 * mib, 1_250_000.0) == 37_500_000
    huge = 5 * 1024 * 1024 * mib
    assert -(-huge // part_size_bytes(huge, 125_000.0)) <= 10_000
