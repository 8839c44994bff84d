"""The header of an age file: its grammar, its X25519 stanzas and its HMAC (C2SP age spec).

Invariant: a header that the grammar does not make, byte for byte, is refused; so there is one
reading of a header, ours and every other implementation's.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from appliance.foundation.errors import DecryptionFailed, SealedToOthers
from appliance.seal.identity import Identity

VERSION_LINE = b"age-encryption.org/v1\n"
NONCE_BYTES = 16
FILE_KEY_BYTES = 16
SHARE_BYTES = 32
WRAPPED_KEY_BYTES = FILE_KEY_BYTES + 16
HEADER_MAX_BYTES = 64 * 1024
STANZAS_MAX = 1024

_BODY_COLUMNS = 64
_END = re.compile(rb"\n--- [^\n]*\n")
_ARGUMENT = re.compile(rb"[\x21-\x7e]+")


class Stanza(msgspec.Struct, frozen=True):
    """One recipient's part of the header: type and further arguments, and the decoded body."""

    arguments: tuple[bytes, ...]
    body: bytes


class AgeHeader(msgspec.Struct, frozen=True):
    """A header that was read: its stanzas, the bytes that the MAC covers, and the MAC."""

    stanzas: tuple[Stanza, ...]
    covered: bytes
    mac: bytes


def header_length(prefix: bytes) -> int:
    """Return the header's length in bytes, given the first bytes of an age file.

    DecryptionFailed when it does not begin as one, or its end is not within the first 64 KiB.
    """
    if not prefix.startswith(VERSION_LINE):
        raise _refused("it is no age file, or of a version that is not known")
    end = _END.search(prefix, 0, HEADER_MAX_BYTES)
    if end is None:
        raise _refused("the header does not end")
    return end.end()


def parse_header(header: bytes) -> AgeHeader:
    """Return what a header says; DecryptionFailed when the grammar does not make it."""
    if header_length(header) != len(header):
        raise _refused("bytes follow the header")
    lines = header[len(VERSION_LINE) :].split(b"\n")[:-1]
    mac_line = lines.pop()
    stanzas: list[Stanza] = []
    at = 0
    while at < len(lines):
        arguments = _arguments(lines[at])
        body = bytearray()
        while True:
            at += 1
            if at == len(lines) or len(lines[at]) > _BODY_COLUMNS:
                raise _refused("a stanza's body does not end")
            body += lines[at]
            if len(lines[at]) < _BODY_COLUMNS:
                break
        at += 1
        stanzas.append(Stanza(arguments, _decode_base64(bytes(body))))
        if len(stanzas) > STANZAS_MAX:
            raise _refused("it has too many stanzas")
    if not stanzas:
        raise _refused("it has no stanza")
    mac = _decode_base64(mac_line.removeprefix(b"--- "))
    if len(mac) != hashlib.sha256().digest_size:
        raise _refused("the MAC has the wrong length")
    return AgeHeader(tuple(stanzas), header[: -len(mac_line) - 1] + b"---", mac)


def unwrap_file_key(header: bytes, identities: Sequence[Identity]) -> bytes:
    """Return the 16 bytes of file key that one of the identities unwraps; the MAC is checked.

    SealedToOthers when none of them fits, DecryptionFailed when the header is malformed or its MAC
    is wrong.
    """
    parsed = parse_header(header)
    file_key = _file_key(_x25519_stanzas(parsed), identities)
    if file_key is None:
        raise SealedToOthers(
            "open sealed object", cause="it is sealed to none of the identities that are here"
        )
    expected = hmac.digest(hkdf(file_key, b"", b"header"), parsed.covered, "sha256")
    if not hmac.compare_digest(expected, parsed.mac):
        raise _refused("the header's MAC is wrong")
    return file_key


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA-256 (RFC 5869): one block, so one HMAC over `info`."""
    extracted = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def _x25519_stanzas(header: AgeHeader) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    for stanza in header.stanzas:
        if stanza.arguments[0] == b"scrypt" and len(header.stanzas) > 1:
            raise _refused("a passphrase stanza must be the only one")
        if stanza.arguments[0] != b"X25519":
            continue
        if len(stanza.arguments) != 2 or len(stanza.body) != WRAPPED_KEY_BYTES:
            raise _refused("an X25519 stanza is malformed")
        share = _decode_base64(stanza.arguments[1])
        if len(share) != SHARE_BYTES:
            raise _refused("an X25519 share has the wrong length")
        found.append((share, stanza.body))
    return found


def _file_key(
    stanzas: Sequence[tuple[bytes, bytes]], identities: Sequence[Identity]
) -> bytes | None:
    for share, body in stanzas:
        for identity in identities:
            try:
                shared = identity.exchange(share)
            except ValueError:
                raise _refused("an X25519 share is of low order") from None
            salt = share + identity.public_bytes
            wrap_key = hkdf(shared, salt, b"age-encryption.org/v1/X25519")
            try:
                return ChaCha20Poly1305(wrap_key).decrypt(bytes(12), body, None)
            except InvalidTag:
                continue
    return None


def _arguments(line: bytes) -> tuple[bytes, ...]:
    marker, *arguments = line.split(b" ")
    if marker != b"->" or not arguments:
        raise _refused("a stanza does not begin as one")
    if not all(map(_ARGUMENT.fullmatch, arguments)):
        raise _refused("a stanza's argument is malformed")
    return tuple(arguments)


def _decode_base64(text: bytes) -> bytes:
    """Return the bytes of canonical base64 without padding."""
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise _refused("its base64 is malformed") from None
    if base64.b64encode(data).rstrip(b"=") != text:
        raise _refused("its base64 is not canonical")
    return data


def _refused(cause: str) -> DecryptionFailed:
    return DecryptionFailed("open sealed object", cause=cause)
