"""age v1 files (C2SP age spec): seal whole objects, open whole objects or any byte range of them.

Sealing is pyrage's. Opening is ours, on `cryptography`, because a recall reads one instance out of
the middle of an object by a ranged GET. X25519 stanzas only; armor and passphrases are not read.

Invariants:
- Nothing is given out that was not authenticated: the header by its HMAC, each 64 KiB chunk by its
  tag, and the place and the end of a chunk by its nonce.
- No error text holds a key or a byte of plaintext.
"""

import functools
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import msgspec
import pyrage
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from appliance.foundation.errors import ConfigurationError, DecryptionFailed, SealedToOthers
from appliance.foundation.files import FileSystem
from appliance.seal.age_header import (
    NONCE_BYTES,
    header_length,
    hkdf,
    unwrap_file_key,
)
from appliance.seal.identity import Identity, recipient_bytes

__all__ = [
    "AgeRange",
    "SealedFile",
    "decrypt_bytes",
    "decrypt_end",
    "decrypt_file",
    "encrypt_bytes",
    "encrypt_file",
    "encrypt_stream",
    "head_length",
    "header_length",
    "unwrap_file_key",
]

CHUNK_BYTES = 64 * 1024
TAG_BYTES = 16
SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES
DECRYPT_BATCH_CHUNKS = 16
HEAD_READ_BYTES = 64 * 1024

Buffer = bytes | bytearray | memoryview


class SupportsRead(Protocol):
    """What bytes can be read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to that many bytes; none at the end."""


class SealedFile(msgspec.Struct, frozen=True):
    """What `encrypt_file` made: length and sha256 of the ciphertext, and its head.

    `head` is the header and the 16 bytes of payload nonce behind it: with the file key all that a
    range needs to be opened.
    """

    size: int
    sha256: bytes
    head: bytes


@functools.lru_cache(maxsize=64)
def _recipient(text: str) -> "pyrage.x25519.Recipient":
    recipient_bytes(text)
    return pyrage.x25519.Recipient.from_str(text)


def _recipients(texts: Sequence[str]) -> list["pyrage.x25519.Recipient"]:
    if not texts:
        raise ConfigurationError("recipients", ("nobody could open what is sealed to nobody",))
    return [_recipient(text) for text in texts]


def encrypt_bytes(plaintext: bytes, recipients: Sequence[str]) -> bytes:
    """Return the age file of some bytes; ConfigurationError when a recipient is none."""
    sealed = io.BytesIO()
    pyrage.encrypt_io(io.BytesIO(plaintext), sealed, _recipients(recipients))
    return sealed.getvalue()


class _SpoolWriter:
    """Where pyrage writes: hashes, and keeps the error that pyrage would turn into its own."""

    def __init__(self, files: FileSystem, fd: int) -> None:
        self._files = files
        self._fd = fd
        self.size = 0
        self.digest = hashlib.sha256()
        self.failed: Exception | None = None

    def write(self, data: bytes) -> int:
        try:
            self._files.pwritev(self._fd, [data], self.size)
        except Exception as cause:
            self.failed = cause
            raise
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


class _Source:
    """Where pyrage reads: keeps the error that pyrage would turn into its own."""

    def __init__(self, plain: SupportsRead) -> None:
        self._plain = plain
        self.failed: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._plain.read(size)
        except Exception as cause:
            self.failed = cause
            raise


def encrypt_file(
    source: str, target: str, recipients: Sequence[str], files: FileSystem | None = None
) -> SealedFile:
    """Seal the file `source` into `target`: see `encrypt_stream`."""
    with open(source, "rb", buffering=CHUNK_BYTES) as plain:
        return encrypt_stream(plain, target, recipients, files)


def encrypt_stream(
    plain: SupportsRead, target: str, recipients: Sequence[str], files: FileSystem | None = None
) -> SealedFile:
    """Seal what `plain` gives into the file `target`, durable when this returns; memory is bounded.

    An existing target is replaced: encryption is not repeatable, so half of one is worth nothing.
    Raises ConfigurationError, OutOfSpace, StorageFailed, and what `plain` raises; a failed target
    is left to the caller.
    """
    files = files or FileSystem()
    keys = _recipients(recipients)
    fd = files.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o640)
    try:
        source, writer = _Source(plain), _SpoolWriter(files, fd)
        raised: Exception | None = None
        try:
            pyrage.encrypt_io(source, writer, keys)
        except Exception as cause:  # noqa: BLE001 - it is looked at below
            raised = cause
        # pyrage drops the error of a last write below 8 KiB, and makes its own of the others.
        if (failed := source.failed or writer.failed or raised) is not None:
            raise failed from None
        files.fdatasync(fd)
        prefix = os.pread(fd, HEAD_READ_BYTES, 0)
    finally:
        files.close(fd)
    files.fsync_directory(os.path.dirname(os.path.abspath(target)))
    return SealedFile(writer.size, writer.digest.digest(), _head(prefix))


def head_length(prefix: bytes) -> int:
    """Return the length of header and payload nonce, given the first bytes of an age file.

    DecryptionFailed when the header does not end within `prefix`.
    """
    return header_length(prefix) + NONCE_BYTES


def _head(prefix: bytes) -> bytes:
    length = head_length(prefix)
    if len(prefix) < length:
        raise DecryptionFailed("open sealed object", cause="it ends in front of its payload")
    return prefix[:length]


class AgeRange:
    """Opens ranges of one age file, given its file key, its head and its length in bytes.

    `head` must be authentic: either it comes with the file key from a ledger entry, or its header
    went through `unwrap_file_key`. Raises DecryptionFailed when the lengths cannot be an age file.
    """

    def __init__(self, file_key: bytes, head: bytes, ciphertext_length: int) -> None:
        nonce = head[-NONCE_BYTES:]
        self._cipher = ChaCha20Poly1305(hkdf(file_key, nonce, b"payload"))
        self.payload_offset = len(head)
        self.ciphertext_length = ciphertext_length
        payload = ciphertext_length - self.payload_offset
        self.chunk_count = -(-payload // SEALED_CHUNK_BYTES)
        last = payload - (self.chunk_count - 1) * SEALED_CHUNK_BYTES
        # Only an empty file has an empty last chunk; there is always one chunk at least.
        if payload < TAG_BYTES or last < TAG_BYTES or (last == TAG_BYTES and self.chunk_count > 1):
            raise DecryptionFailed("open sealed object", cause="its length is that of a cut one")
        self.plaintext_length = payload - self.chunk_count * TAG_BYTES

    def __repr__(self) -> str:
        return f"AgeRange({self.plaintext_length} bytes)"

    def ciphertext_range(self, plain_start: int, plain_end: int) -> tuple[int, int]:
        """Return the range of the age file, whole chunks, that holds a range of the plaintext.

        Ends are exclusive; the plain range is cut to what there is. Empty gives empty.
        """
        plain_end = min(plain_end, self.plaintext_length)
        if not 0 <= plain_start < plain_end:
            return self.payload_offset, self.payload_offset
        start = self.payload_offset + plain_start // CHUNK_BYTES * SEALED_CHUNK_BYTES
        end = self.payload_offset + -(-plain_end // CHUNK_BYTES) * SEALED_CHUNK_BYTES
        return start, min(end, self.ciphertext_length)

    def decrypt_slice(self, sealed: Buffer, plain_start: int, plain_end: int) -> memoryview:
        """Return exactly the plain range, given the bytes of its `ciphertext_range`.

        Raises DecryptionFailed when a chunk is not authentic or a byte is missing.
        """
        plain_end = min(plain_end, self.plaintext_length)
        if not 0 <= plain_start < plain_end:
            return memoryview(b"")
        first = plain_start // CHUNK_BYTES
        plain = memoryview(self.decrypt_range(sealed, first))
        skip = plain_start - first * CHUNK_BYTES
        if len(plain) < plain_end - first * CHUNK_BYTES:
            raise DecryptionFailed("open sealed object", cause="bytes are missing")
        return plain[skip : skip + plain_end - plain_start]

    def decrypt_range(self, sealed: Buffer, first_chunk: int) -> bytearray:
        """Return the plaintext of whole chunks, the first of which has the index `first_chunk`.

        `sealed` may end only at the end of a chunk. Raises DecryptionFailed.
        """
        count = -(-len(sealed) // SEALED_CHUNK_BYTES)
        plain = bytearray(max(0, len(sealed) - count * TAG_BYTES))
        self.decrypt_into(sealed, first_chunk, memoryview(plain))
        return plain

    def decrypt_into(self, sealed: Buffer, first_chunk: int, target: memoryview) -> int:
        """Decrypt as `decrypt_range` does into the front of `target`; return how many bytes.

        Raises DecryptionFailed, also when `target` is too short.
        """
        view = memoryview(sealed)
        count = -(-len(view) // SEALED_CHUNK_BYTES)
        size = len(view) - count * TAG_BYTES
        if size < 0 or first_chunk < 0 or first_chunk + count > self.chunk_count:
            raise DecryptionFailed("open sealed object", cause="the range is not in it")
        if size > len(target):
            raise DecryptionFailed("open sealed object", cause="no room for the range")
        target = target[:size]
        last = self.chunk_count - 1
        decrypt_into = self._cipher.decrypt_into
        try:
            for index in range(count):
                number = first_chunk + index
                nonce = number.to_bytes(11, "big") + (b"\1" if number == last else b"\0")
                start = index * SEALED_CHUNK_BYTES
                out = index * CHUNK_BYTES
                decrypt_into(
                    nonce,
                    view[start : start + SEALED_CHUNK_BYTES],
                    None,
                    target[out : out + CHUNK_BYTES],
                )
        except (InvalidTag, ValueError) as cause:
            raise DecryptionFailed(
                "open sealed object", f"chunk {number}", "it is damaged, cut or not ours"
            ) from cause
        return size


def decrypt_bytes(sealed: bytes, identities: Sequence[Identity]) -> bytes:
    """Return the plaintext of a whole age file; DecryptionFailed when any of it is not right."""
    head = _head(sealed)
    file_key = unwrap_file_key(head[:-NONCE_BYTES], identities)
    age_range = AgeRange(file_key, head, len(sealed))
    return bytes(age_range.decrypt_range(memoryview(sealed)[len(head) :], 0))


def decrypt_file(
    source: BinaryIO, identities: Sequence[Identity], file_key: bytes = b""
) -> Iterator[bytearray]:
    """Give the plaintext of a seekable age file in pieces of 1 MiB at most, each authentic.

    `file_key`: what a ledger entry says of it, for whom none of the identities opens it. The end is
    authentic as well once the iterator is exhausted. Raises DecryptionFailed.
    """
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    prefix = source.read(HEAD_READ_BYTES)
    head = _head(prefix)
    try:
        file_key = unwrap_file_key(head[:-NONCE_BYTES], identities)
    except SealedToOthers:
        if not file_key:
            raise
    age_range = AgeRange(file_key, head, size)
    source.seek(len(head))
    for first in range(0, age_range.chunk_count, DECRYPT_BATCH_CHUNKS):
        sealed = source.read(DECRYPT_BATCH_CHUNKS * SEALED_CHUNK_BYTES)
        yield age_range.decrypt_range(sealed, first)


def decrypt_end(source: BinaryIO, identities: Sequence[Identity], length: int) -> tuple[int, bytes]:
    """Return the length of a seekable age file's plaintext, and its last bytes, `length` at most.

    Reads no more than the header and the last chunks. Raises DecryptionFailed.
    """
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    head = _head(source.read(HEAD_READ_BYTES))
    age_range = AgeRange(unwrap_file_key(head[:-NONCE_BYTES], identities), head, size)
    total = age_range.plaintext_length
    first = max(0, total - length)
    start, end = age_range.ciphertext_range(first, total)
    source.seek(start)
    return total, bytes(age_range.decrypt_slice(source.read(end - start), first, total))
