"""Keys of the index: how UIDs and texts become bytes that sort and delimit themselves.

Invariants:
- No packed UID is the beginning of another, so packed UIDs can be put in a row.
- Packing keeps order and nearness: UIDs that a device numbers in a row lie in one page.
- A text key ends with a zero byte and contains none before it.
"""

import hashlib
import re
from functools import lru_cache

UID_LENGTH_MAX = 64
TEXT_KEY_LENGTH_MAX = 100
"""Bytes of a text kept in a key. LMDB allows 511 for a whole key, which holds up to three."""

_TO_DIGITS = bytes.maketrans(b".0123456789", b"123456789ab")
_FROM_DIGITS = bytes.maketrans(b"123456789ab", b".0123456789")
_DIGITS_ONLY = b".0123456789"
_LOW_HALF = bytes(byte & 0x0F for byte in range(256))
_ODD = 0xFF
_HASH_LENGTH = 16
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_TO_BASE32 = str.maketrans(_CROCKFORD, "0123456789abcdefghijklmnopqrstuv")
_PACK_ID_LENGTH = 26
_PACK_ID_BYTES = 16
_PACK_ID = re.compile(f"[0-7][{_CROCKFORD}]{{{_PACK_ID_LENGTH - 1}}}")


def pack_uid(uid: str) -> bytes:
    """Return a UID with two characters to a byte, ended by a zero half byte.

    A text that is no UID becomes 0xFF and its text key.
    """
    raw = uid.encode("utf-8", "surrogateescape")
    if raw.translate(None, _DIGITS_ONLY) or not 0 < len(raw) <= UID_LENGTH_MAX:
        return b"\xff" + text_key(uid)
    digits = raw.translate(_TO_DIGITS).decode()
    return bytes.fromhex(digits + "0" if len(digits) & 1 else digits + "00")


def unpack_uid(packed: bytes, start: int = 0) -> tuple[str, int]:
    """Return the UID that begins at `start`, and where it ends.

    Of a text that `text_key` had to cut, what is left comes back.
    """
    if packed[start] == _ODD:
        end = packed.index(0, start)
        return _text_of(packed[start + 1 : end]), end + 1
    end = packed.translate(_LOW_HALF).index(0, start)
    used = 2 * (end - start) + (1 if packed[end] else 0)
    end += 1
    digits = packed[start:end].hex()[:used]
    return digits.encode().translate(_FROM_DIGITS).decode(), end


def unpack_uids(packed: bytes) -> list[str]:
    """Return the UIDs of a key that is nothing but packed UIDs."""
    found, position = [], 0
    while position < len(packed):
        uid, position = unpack_uid(packed, position)
        found.append(uid)
    return found


def text_key(text: str) -> bytes:
    """Return a text as a part of a key: its UTF-8 bytes, escaped, cut to a length, then zero.

    What is cut is replaced by a hash of the whole, so that equal keys mean equal texts.
    """
    raw = text_prefix(text)
    if len(raw) > TEXT_KEY_LENGTH_MAX:
        digest = hashlib.blake2b(raw, digest_size=_HASH_LENGTH).hexdigest().encode()
        raw = raw[: TEXT_KEY_LENGTH_MAX - len(digest)] + digest
    return raw + b"\x00"


def text_prefix(text: str) -> bytes:
    """Return the bytes with which the text keys of all texts begin that begin with `text`.

    Cut it to `PREFIX_LENGTH_MAX` before searching: behind that a key may hold a hash.
    """
    raw = text.encode("utf-8", "surrogateescape")
    if b"\x00" in raw or b"\x01" in raw:
        raw = raw.replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")
    return raw


PREFIX_LENGTH_MAX = TEXT_KEY_LENGTH_MAX - 2 * _HASH_LENGTH


def _text_of(raw: bytes) -> str:
    raw = raw.replace(b"\x01\x01", b"\x00").replace(b"\x01\x02", b"\x01")
    return raw.decode("utf-8", "surrogateescape")


@lru_cache(maxsize=4096)
def pack_reference(pack_id: str) -> bytes:
    """Return a pack id as 16 bytes; a text that is no pack id as 0xFF and its text key."""
    if _PACK_ID.fullmatch(pack_id):
        return int(pack_id.translate(_TO_BASE32), 32).to_bytes(_PACK_ID_BYTES, "big")
    reference = b"\xff" + text_key(pack_id)
    # As long as a pack id's it would be taken for one; no text key ends in two zeros.
    return reference + b"\0" if len(reference) == _PACK_ID_BYTES else reference


@lru_cache(maxsize=4096)
def pack_id_of(reference: bytes) -> str:
    """Return the pack id of a reference."""
    if len(reference) != _PACK_ID_BYTES:
        return _text_of(reference[1:].rstrip(b"\0"))
    value = int.from_bytes(reference, "big")
    return "".join(
        _CROCKFORD[value >> shift & 31] for shift in range(5 * (_PACK_ID_LENGTH - 1), -1, -5)
    )
