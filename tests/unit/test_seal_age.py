"""Sealing and opening, against the `age` command and against damage."""

import hashlib
import io
import os
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from appliance.foundation.errors import (
    ConfigurationError,
    DecryptionFailed,
    OutOfSpace,
    StorageFailed,
)
from appliance.foundation.files import FileSystem
from appliance.seal.age import (
    CHUNK_BYTES,
    AgeRange,
    decrypt_bytes,
    decrypt_file,
    encrypt_bytes,
    encrypt_file,
    encrypt_stream,
    head_length,
    header_length,
    unwrap_file_key,
)
from appliance.seal.age_header import NONCE_BYTES
from appliance.seal.identity import Identity, new_identity_file
from tests.support import pack_samples as samples


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.generate()


def range_of(sealed: bytes, identity: Identity) -> AgeRange:
    head = sealed[: head_length(sealed)]
    return AgeRange(unwrap_file_key(head[:-NONCE_BYTES], [identity]), head, len(sealed))


def test_the_age_command_opens_what_is_sealed(tmp_path: Path):
    """`age -d -i recovery.key PACK` needs nothing of this software."""
    if shutil.which("age") is None:
        pytest.skip("age is not installed")
    key = str(tmp_path / "recovery.key")
    recovery = new_identity_file(key)
    node = Identity.generate()
    plain = os.urandom(3 * CHUNK_BYTES + 17)
    source, target = tmp_path / "pack.tar", tmp_path / "pack.tar.age"
    source.write_bytes(plain)
    encrypt_file(str(source), str(target), [node.recipient, recovery.recipient])
    for sealed in (target.read_bytes(), encrypt_bytes(plain, [recovery.recipient])):
        done = subprocess.run(
            ["age", "-d", "-i", key], input=sealed, capture_output=True, check=True
        )
        assert done.stdout == plain


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 200_000])
def test_what_the_age_command_sealed_is_opened(identity: Identity, length: int):
    """A checkpoint or pack that a person sealed by hand is read like our own."""
    if shutil.which("age") is None:
        pytest.skip("age is not installed")
    plain = os.urandom(length)
    done = subprocess.run(
        ["age", "-r", Identity.generate().recipient, "-r", identity.recipient],
        input=plain, capture_output=True, check=True,
    )  # fmt: skip
    assert decrypt_bytes(done.stdout, [Identity.generate(), identity]) == plain
    age_range = range_of(done.stdout, identity)
    assert age_range.plaintext_length == length
    low, high = age_range.ciphertext_range(length // 2, length)
    assert (
        age_range.decrypt_slice(done.stdout[low:high], length // 2, length) == plain[length // 2 :]
    )


def test_encrypt_file_tells_what_the_target_holds(tmp_path: Path, identity: Identity):
    """The checksum for the bucket and the head for the ledger come with the spool file."""
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(os.urandom(100_000))
    target.write_bytes(b"left over from an attempt that was cut short" * 10_000)
    sealed = encrypt_file(str(source), str(target), [identity.recipient])
    content = target.read_bytes()
    assert sealed.size == len(content)
    assert sealed.sha256 == hashlib.sha256(content).digest()
    assert sealed.head == content[: header_length(content) + NONCE_BYTES]
    assert decrypt_bytes(content, [identity]) == source.read_bytes()


def test_encrypt_file_is_durable_when_it_returns(tmp_path: Path, identity: Identity):
    """The spool is on the medium before its first PUT."""
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    files = samples.FailingFiles()
    encrypt_file(str(tmp_path / "a"), str(tmp_path / "b"), [identity.recipient], files)
    assert files.calls[-2:] == ["fdatasync", "fsync_directory"]
    assert "pwritev" not in files.calls[-2:]


@pytest.mark.parametrize(
    ("fail", "error"),
    [(samples.full_disk, OutOfSpace), (samples.broken_disk, StorageFailed)],
)
def test_encrypt_file_tells_a_full_disk_from_a_broken_one(tmp_path, identity, fail, error):
    """The library in between does not hide why a write failed."""
    (tmp_path / "a").write_bytes(b"x" * 300_000)
    counting = samples.FailingFiles()
    encrypt_file(str(tmp_path / "a"), str(tmp_path / "b"), [identity.recipient], counting)
    for at in range(1, counting.count + 1):
        files = samples.FailingFiles(at, fail)
        with pytest.raises(error):
            encrypt_file(str(tmp_path / "a"), str(tmp_path / "b"), [identity.recipient], files)


class _OnceFull(FileSystem):
    """A disk that is full at one write only: somebody made room right behind it."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.count = 0

    def pwritev(self, fd, buffers, offset):
        self.count += 1
        if self.count == self._at:
            raise samples.full_disk("write")
        return super().pwritev(fd, buffers, offset)


@pytest.mark.parametrize("size", [10, 200_000, 300_000])
def test_no_write_that_failed_is_passed_over(tmp_path, identity, size):
    """The last one too, whose error the library drops if it is small: else a cut object is sent."""
    (tmp_path / "a").write_bytes(b"x" * size)
    counting = _OnceFull(0)
    encrypt_file(str(tmp_path / "a"), str(tmp_path / "b"), [identity.recipient], counting)
    for at in range(1, counting.count + 1):
        with pytest.raises(OutOfSpace):
            encrypt_file(
                str(tmp_path / "a"), str(tmp_path / "b"), [identity.recipient], _OnceFull(at)
            )


def test_a_source_that_fails_is_no_short_file(tmp_path, identity):
    """Its own error comes out, not the library's."""

    class Source:
        def read(self, _size=-1):
            raise KeyError("mine")

    with pytest.raises(KeyError):
        encrypt_stream(Source(), str(tmp_path / "b"), [identity.recipient])


def test_sealing_and_opening_a_large_file_take_little_memory(tmp_path: Path, identity: Identity):
    """A 2 GB pack is sealed on a small machine."""
    source, target = str(tmp_path / "a"), str(tmp_path / "b")
    with open(source, "wb") as file:
        file.truncate(100 << 20)
    tracemalloc.start()
    encrypt_file(source, target, [identity.recipient])
    with open(target, "rb") as file:
        assert sum(map(len, decrypt_file(file, [identity]))) == 100 << 20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_no_file_key_or_nonce_is_used_twice(identity: Identity):
    """Fault 60: the same plaintext sealed again shares nothing with the first."""
    keys, nonces = set(), set()
    for _ in range(200):
        sealed = encrypt_bytes(b"same", [identity.recipient])
        header = sealed[: header_length(sealed)]
        keys.add(unwrap_file_key(header, [identity]))
        nonces.add(sealed[len(header) : len(header) + NONCE_BYTES])
    assert len(keys) == len(nonces) == 200


def test_sealing_to_nobody_or_to_nonsense_is_refused(identity: Identity):
    """A recipient that was mistyped is found before anything is sealed to it."""
    typo = identity.recipient[:-1] + ("q" if identity.recipient[-1] != "q" else "p")
    for recipients in ([], ["age1"], [typo], [identity.recipient.upper()], ["ssh-ed25519 AAAA"]):
        with pytest.raises(ConfigurationError):
            encrypt_bytes(b"", recipients)


@pytest.mark.parametrize("length", [0, 100, CHUNK_BYTES, 2 * CHUNK_BYTES])
def test_every_cut_is_seen(identity: Identity, length: int):
    """Fault 48: a cut object is never taken for a whole one."""
    sealed = encrypt_bytes(bytes(length), [identity.recipient])
    cuts = [*range(0, len(sealed), 97), len(sealed) - 1, head_length(sealed)]
    for cut in cuts:
        with pytest.raises(DecryptionFailed):
            decrypt_bytes(sealed[:cut], [identity])
        with pytest.raises(DecryptionFailed):
            list(decrypt_file(io.BytesIO(sealed[:cut]), [identity]))


def test_every_changed_byte_is_seen(identity: Identity):
    """Header, nonce and payload are all authentic, or nothing is given out."""
    sealed = bytearray(encrypt_bytes(b"payload", [identity.recipient]))
    for at in range(len(sealed)):
        sealed[at] ^= 1
        with pytest.raises(DecryptionFailed):
            decrypt_bytes(bytes(sealed), [identity])
        sealed[at] ^= 1
    assert decrypt_bytes(bytes(sealed), [identity]) == b"payload"


def test_a_range_from_another_place_is_refused(identity: Identity):
    """Chunks that were swapped, repeated or dropped are not authentic where they stand."""
    plain = os.urandom(4 * CHUNK_BYTES)
    sealed = encrypt_bytes(plain, [identity.recipient])
    age_range = range_of(sealed, identity)
    low, high = age_range.ciphertext_range(CHUNK_BYTES, 2 * CHUNK_BYTES)
    chunk = sealed[low:high]
    assert age_range.decrypt_range(chunk, 1) == plain[CHUNK_BYTES : 2 * CHUNK_BYTES]
    for wrong in (0, 2, 3):
        with pytest.raises(DecryptionFailed):
            age_range.decrypt_range(chunk, wrong)
    for part in (chunk[:-1], chunk + b"x", chunk[:10], sealed):
        with pytest.raises(DecryptionFailed):
            age_range.decrypt_range(part, 1)
    for index in (-1, 4, 10**9):
        with pytest.raises(DecryptionFailed):
            age_range.decrypt_range(chunk, index)
    with pytest.raises(DecryptionFailed):
        age_range.decrypt_slice(chunk, CHUNK_BYTES, 3 * CHUNK_BYTES)


def test_a_wrong_length_is_no_age_file(identity: Identity):
    """The size that the bucket tells is checked against what a payload can be."""
    sealed = encrypt_bytes(bytes(CHUNK_BYTES), [identity.recipient])
    head = sealed[: head_length(sealed)]
    key = unwrap_file_key(head[:-NONCE_BYTES], [identity])
    for length in (0, len(head), len(head) + 15, len(sealed) + 1, len(sealed) + 16):
        with pytest.raises(DecryptionFailed):
            AgeRange(key, head, length)


def test_an_object_that_is_sealed_to_others_is_refused(identity: Identity):
    """The error says that no identity fits, and shows no secret."""
    other = Identity.generate()
    with pytest.raises(DecryptionFailed) as caught:
        decrypt_bytes(encrypt_bytes(b"x", [identity.recipient]), [other])
    assert "none of the identities" in str(caught.value)
    assert other.secret_text() not in str(caught.value)


def test_a_header_without_end_is_refused():
    """A hostile object cannot make the reader look for ever."""
    endless = b"age-encryption.org/v1\n" + b"-> X25519 " + b"A" * 200_000
    for content in (b"", b"no age", endless, b"age-encryption.org/v1\n" + b"-> a\n\n" * 20_000):
        with pytest.raises(DecryptionFailed):
            header_length(content)


def test_encrypt_file_refuses_a_source_that_is_gone(tmp_path: Path, identity: Identity):
    """A missing pack is an error that names it, not an empty object."""
    with pytest.raises(FileNotFoundError):
        encrypt_file(
            str(tmp_path / "gone"), str(tmp_path / "b"), [identity.recipient], FileSystem()
        )
