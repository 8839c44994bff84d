"""The bytes in front of a dataset: pax header, ustar header, file meta group, and their check.

Owns both directions of the pack's member header. Must not touch files: reading goes through a
callable that is passed in.

Invariants:
- The check covers every header byte of a member (both tar headers, the pax data, the file meta
  group), and with them the dataset's length and sha256. So header and dataset together are proved
  by one hash over the headers and one over the dataset.
- The comment names the pack. A sender can put the bytes of a member inside a dataset, but cannot
  know the 80 random bits of the id of the pack that it will land in; recovery takes no other.
- Headers are written by templates: this code runs once for every C-STORE.
"""

import calendar
import functools
import hashlib
import time
from collections.abc import Callable

import msgspec

from appliance.foundation.errors import Damaged, UnsupportedFormat
from appliance.packs.member import (
    BLOCK_BYTES,
    DAMAGED_FOLDER,
    HEADERS_NAME,
    DamagedExtent,
    Member,
    Provenance,
    file_meta_uid,
    is_member_name,
    round_up,
)

FORMAT_VERSION = 1
PAX_NAME = b"PaxHeaders/azekura"
PAX_DATA_MAX_BYTES = 64 * 1024
FILE_META_MAX_BYTES = 64 * 1024
HEAD_READ_BYTES = 4096
USTAR_SIZE_MAX_BYTES = 8**11 - 1
TEXT_MAX_BYTES = 1024
# Holds the pax data of any member: seven texts, and some 500 bytes of fixed size.
STREAMED_PAX_BYTES = 8 * 1024
ZERO_BLOCK = bytes(BLOCK_BYTES)

_CHECK_ZEROS = b"0" * 64
_CHECK_TAIL_BYTES = len(b'"}\n')
_USTAR_TAIL = bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\x000000000\x00"

Read = Callable[[int, int], bytes]
"""`read(offset, length)` returns the bytes there, fewer at the end of the file."""


class _Comment(msgspec.Struct):
    pack: str
    received_at: str
    calling_ae: str
    called_ae: str
    peer_address: str
    tls_subject: str
    issuer: str
    character_set: str
    transfer_syntax_uid: str
    length: int
    sha256: str
    check: str


class _Version(msgspec.Struct):
    azekura: int


_decode_comment = msgspec.json.Decoder(_Comment).decode
_decode_version = msgspec.json.Decoder(_Version).decode
_encode_json = msgspec.json.Encoder().encode


def pack_id_of(path: str) -> str:
    """Return the pack id that a pack's path carries: the file's name up to its first dot."""
    return path.rpartition("/")[2].partition(".")[0]


def encode_head(
    pack_id: str,
    name: str,
    provenance: Provenance,
    transfer_syntax_uid: str,
    file_meta: bytes,
    length: int,
    sha256: bytes,
    pax_area_bytes: int | None = None,
) -> bytes:
    """Return all bytes of a member in front of its dataset.

    `pax_area_bytes`, a multiple of 512, makes the pax data exactly so long (the comment is padded
    with spaces); ValueError when it does not fit. Without it the data takes the blocks it needs.
    ValueError for a name that `member_name` did not make.
    """
    if name != HEADERS_NAME and not is_member_name(name):
        raise ValueError("that is no name of a member")
    seconds, microseconds = divmod(provenance.received_at_us, 1_000_000)
    middle = _comment_middle(
        provenance.calling_ae,
        provenance.called_ae,
        provenance.peer_address,
        provenance.tls_subject,
        provenance.issuer,
        provenance.character_set,
        transfer_syntax_uid,
    )
    front = b'{"azekura":%d,"pack":"%b","received_at":"%b.%06dZ"%b%d,"sha256":"%b"' % (
        FORMAT_VERSION,
        pack_id.encode(),
        _iso_seconds(seconds),
        microseconds,
        middle,
        length,
        sha256.hex().encode(),
    )
    file_length = len(file_meta) + length
    prefix, last = _name_fields(name)
    records = b""
    if file_length > USTAR_SIZE_MAX_BYTES:
        records += _pax_record(b"size", b"%d" % file_length)
    back = b',"check":"' + _CHECK_ZEROS + b'"}'
    if pax_area_bytes is not None:
        front += _padding(pax_area_bytes - len(records), len(front) + len(back))
    records += _pax_record(b"comment", front + back)
    pax_length = len(records)
    head = bytearray().join(
        (
            _pax_block(pax_length),
            records,
            bytes(-pax_length % BLOCK_BYTES),
            _ustar_block(last, prefix, file_length, seconds),
            file_meta,
        )
    )
    check_at = BLOCK_BYTES + pax_length - _CHECK_TAIL_BYTES - 64
    head[check_at : check_at + 64] = hashlib.sha256(head).hexdigest().encode()
    return bytes(head)


@functools.lru_cache(maxsize=1024)
def _comment_middle(*texts: str) -> bytes:
    keys = (
        "calling_ae",
        "called_ae",
        "peer_address",
        "tls_subject",
        "issuer",
        "character_set",
        "transfer_syntax_uid",
    )
    pairs = (
        b'"%b":%b' % (key.encode(), _json_text(text)) for key, text in zip(keys, texts, strict=True)
    )
    return b"," + b",".join(pairs) + b',"length":'


def _json_text(text: str) -> bytes:
    """Return a JSON string, of a text cut so that no peer's certificate outgrows the headers."""
    # A peer's address or subject may hold what is not Unicode.
    text = text.encode("utf-8", "backslashreplace").decode()
    encoded = _encode_json(text)
    while len(encoded) > TEXT_MAX_BYTES:
        text = text[: len(text) * 3 // 4]
        encoded = _encode_json(text)
    return encoded


@functools.lru_cache(maxsize=64)
def _iso_seconds(seconds: int) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode()


def _pax_record(key: bytes, value: bytes) -> bytes:
    """Return `<length> key=value` and a newline, the length counting its own digits (pax)."""
    rest = len(key) + len(value) + 3
    total = rest + len(b"%d" % rest)
    if len(b"%d" % total) != total - rest:
        total += 1
    return b"%d %b=%b\n" % (total, key, value)


def _padding(record_bytes: int, value_bytes: int) -> bytes:
    spaces = record_bytes - len(b"%d comment=\n" % record_bytes) - value_bytes
    if spaces < 0:
        raise ValueError(f"the pax data needs {-spaces} bytes more than were reserved")
    return b" " * spaces


@functools.lru_cache(maxsize=256)
def _pax_block(size: int) -> bytes:
    return _with_checksum(
        PAX_NAME.ljust(100, b"\0")
        + b"0000644\x000000000\x000000000\x00%011o\x0000000000000\x00" % size
        + b"        x"
        + _USTAR_TAIL
        + bytes(167)
    )


def _ustar_block(name: bytes, prefix: bytes, size: int, mtime_s: int) -> bytes:
    if size > USTAR_SIZE_MAX_BYTES:
        size = 0
    return _with_checksum(
        name.ljust(100, b"\0")
        + b"0000640\x000000000\x000000000\x00%011o\x00%011o\x00        0" % (size, max(mtime_s, 0))
        + _USTAR_TAIL
        + prefix.ljust(167, b"\0")
    )


def _with_checksum(block: bytes) -> bytes:
    return block[:148] + b"%06o\x00 " % sum(block) + block[156:]


def _name_fields(name: str) -> tuple[bytes, bytes]:
    """Return the ustar prefix and name. Both parts of the longest member name fit: 66 and 79."""
    folder, _, last = name.encode().rpartition(b"/")
    return folder, last


def damaged_block(header_offset: int, member_end: int) -> bytes:
    """Return the tar header that makes a damaged stretch a plain file, so that tar reads on."""
    name = b"%b/%d.bin" % (DAMAGED_FOLDER.encode(), header_offset)
    return _ustar_block(name, b"", member_end - header_offset - BLOCK_BYTES, 0)


def decode_head(
    read: Read, offset: int, subject: str, pack_id: str | None = None
) -> Member | DamagedExtent | None:
    """Return what begins at an offset: a member, a damaged stretch, or None at a zero block.

    The check is verified; the dataset is not read. `subject` names the pack in errors; with
    `pack_id`, a member of another pack is none.
    Raises Damaged when nothing of ours begins there, UnsupportedFormat for another version.
    """
    head = read(offset, HEAD_READ_BYTES)
    block = head[:BLOCK_BYTES]
    if block == ZERO_BLOCK or not block:
        return None
    try:
        return _decode(read, head, offset, pack_id)
    except (_Malformed, ValueError, msgspec.DecodeError) as cause:
        raise Damaged("read pack member", f"{subject} at byte {offset}", str(cause)) from cause


class _Malformed(Exception):
    """These bytes are not a member; says why."""


def _decode(read: Read, head: bytes, offset: int, pack_id: str | None) -> Member | DamagedExtent:
    size = _verified_size(head[:BLOCK_BYTES])
    if head[156:157] == b"0":
        end = offset + BLOCK_BYTES + size
        if head[:BLOCK_BYTES] != damaged_block(offset, end) or size % BLOCK_BYTES:
            raise _Malformed("a file without our pax header")
        return DamagedExtent(offset, end)
    if head[156:157] != b"x" or size > PAX_DATA_MAX_BYTES:
        raise _Malformed("no pax header")
    ustar_at = BLOCK_BYTES + round_up(size)
    if len(head) < ustar_at + BLOCK_BYTES:
        head = read(offset, ustar_at + BLOCK_BYTES)
    records = _pax_records(head[BLOCK_BYTES : BLOCK_BYTES + size])
    comment = _comment(records)
    if pack_id is not None and comment.pack != pack_id:
        raise _Malformed("a member of another pack")
    ustar = head[ustar_at : ustar_at + BLOCK_BYTES]
    file_length = int(records.get(b"size", b"0")) or _verified_size(ustar)
    meta_at = ustar_at + BLOCK_BYTES
    meta_length = file_length - comment.length
    if not 0 <= meta_length <= FILE_META_MAX_BYTES or comment.length < 0:
        raise _Malformed("the lengths contradict each other")
    if len(head) < meta_at + meta_length:
        head = read(offset, meta_at + meta_length)
    _verify_check(head[: meta_at + meta_length], BLOCK_BYTES + size, comment.check)
    file_meta = head[meta_at : meta_at + meta_length]
    name = _ustar_name(ustar).decode()
    if name != HEADERS_NAME and not is_member_name(name):
        raise _Malformed("a name that no member has")
    return Member(
        name=name,
        header_offset=offset,
        file_offset=offset + meta_at,
        dataset_offset=offset + meta_at + meta_length,
        length=comment.length,
        sha256=bytes.fromhex(comment.sha256),
        sop_class_uid=file_meta_uid(file_meta, 2),
        sop_instance_uid=file_meta_uid(file_meta, 3),
        transfer_syntax_uid=comment.transfer_syntax_uid,
        provenance=Provenance(
            received_at_us=_microseconds(comment.received_at),
            calling_ae=comment.calling_ae,
            called_ae=comment.called_ae,
            peer_address=comment.peer_address,
            tls_subject=comment.tls_subject,
            issuer=comment.issuer,
            character_set=comment.character_set,
        ),
    )


def _verified_size(block: bytes) -> int:
    """Return the size field of a tar header whose magic and checksum are right."""
    if len(block) < BLOCK_BYTES or block[257:265] != b"ustar\x0000":
        raise _Malformed("no tar header")
    if sum(block) - sum(block[148:156]) + 8 * 32 != int(block[148:154], 8):
        raise _Malformed("the tar header's checksum is wrong")
    if not block[124:135].isdigit():
        raise _Malformed("the tar header's size is no number")
    return int(block[124:135], 8)


def _ustar_name(block: bytes) -> bytes:
    name = block[:100].rstrip(b"\0")
    prefix = block[345:500].rstrip(b"\0")
    return b"%b/%b" % (prefix, name) if prefix else name


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.index(b" ", at, at + 8)
        end = at + int(data[at:space])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or end > len(data) or end <= space or data[end - 1] != 0x0A:
            raise _Malformed("a pax record is broken")
        records[key] = value
        at = end
    return records


def _comment(records: dict[bytes, bytes]) -> _Comment:
    raw = records.get(b"comment", b"")
    if not raw.startswith(b'{"azekura":'):
        raise _Malformed("no comment of ours in the pax header")
    if not raw.startswith(b'{"azekura":%d,' % FORMAT_VERSION):
        version = _decode_version(raw).azekura
        raise UnsupportedFormat("read pack member", f"format {version}", hint="Update Azekura")
    return _decode_comment(raw)


def _verify_check(head: bytes, pax_end: int, check: str) -> None:
    at = pax_end - _CHECK_TAIL_BYTES - 64
    if head[at : at + 64] != check.encode():
        raise _Malformed("the check is not where it belongs")
    digest = hashlib.sha256(head[:at])
    digest.update(_CHECK_ZEROS)
    digest.update(head[at + 64 :])
    if digest.hexdigest() != check:
        raise _Malformed("the headers are not what was written")


def _microseconds(text: str) -> int:
    """Return microseconds since 1970 of the one form that `encode_head` writes."""
    return _seconds(text[:19]) * 1_000_000 + int(text[20:26])


@functools.lru_cache(maxsize=64)
def _seconds(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
