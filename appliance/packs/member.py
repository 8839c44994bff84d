"""What a pack holds: one member for each instance, and how members are named.

Owns the words Provenance and Member and the rule for names. Must not touch files.

Invariants:
- A name never escapes the folder that `tar x` runs in: a UID that is not `[0-9.]{1,64}` is replaced
  by its hash, and dots alone are not taken for a UID.
- `dataset_offset` counts bytes from the start of the plain tar, so it is the same in an open, a
  closed, a sealed and a recalled pack.
"""

import hashlib
import re

import msgspec

BLOCK_BYTES = 512
PACK_MEMBERS_MAX = 4096
HEADERS_NAME = "headers.gz"
DAMAGED_FOLDER = "damaged"

Buffer = bytes | bytearray | memoryview

# A digit at least: "." and ".." are folders.
_UID = r"(?=[.]*[0-9])[0-9.]{1,64}"
_PART = rf"(?:{_UID}|x-[0-9a-f]{{64}})"
_matches_uid = re.compile(_UID).fullmatch
_matches_name = re.compile(rf"{_PART}/{_PART}(?:~[0-9a-f]{{8}})?[.]dcm").fullmatch


class Provenance(msgspec.Struct, frozen=True):
    """Who sent an instance, to whom, and when its last byte came (microseconds since 1970 UTC).

    `issuer` and `character_set` are the defaults that were configured for the sender then; they
    count where the dataset has none, and no later change of the configuration alters that.
    """

    received_at_us: int
    calling_ae: str
    called_ae: str
    peer_address: str
    tls_subject: str = ""
    issuer: str = ""
    character_set: str = ""


class Member(msgspec.Struct, frozen=True):
    """One instance in a pack; offsets in bytes from the start of the tar.

    The member begins with its pax header at `header_offset`. The Part 10 file begins at
    `file_offset`, its dataset at `dataset_offset`; the file meta group lies between the two.
    `sha256` (32 bytes) and `length` are those of the dataset as it came.
    """

    name: str
    header_offset: int
    file_offset: int
    dataset_offset: int
    length: int
    sha256: bytes
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    provenance: Provenance

    @property
    def dataset_end(self) -> int:
        """Return the offset behind the last byte of the dataset."""
        return self.dataset_offset + self.length

    @property
    def member_end(self) -> int:
        """Return the offset of the next header: the block boundary at or behind the dataset."""
        return round_up(self.dataset_offset + self.length)


class DamagedExtent(msgspec.Struct, frozen=True):
    """A stretch of a recovered pack that holds no instance; the tar carries it as a plain file."""

    header_offset: int
    member_end: int


def round_up(offset: int) -> int:
    """Return the first block boundary at or behind an offset."""
    return (offset + BLOCK_BYTES - 1) & -BLOCK_BYTES


def member_name(
    series_instance_uid: str, sop_instance_uid: str, version_suffix: str | None = None
) -> str:
    """Return `<series>/<instance>.dcm`, or `<series>/<instance>~<suffix>.dcm` for a later version.

    `version_suffix` is the first 8 hex digits of the dataset's sha256, so that no `tar x`
    overwrites one version with another.
    """
    instance = _safe(sop_instance_uid)
    if version_suffix is not None:
        instance = f"{instance}~{version_suffix}"
    return f"{_safe(series_instance_uid)}/{instance}.dcm"


def is_member_name(name: str) -> bool:
    """Return whether a name is one that `member_name` makes, safe to extract."""
    return _matches_name(name) is not None


def _safe(uid: str) -> str:
    if _matches_uid(uid):
        return uid
    return "x-" + hashlib.sha256(uid.encode("utf-8", "surrogateescape")).hexdigest()


def file_meta_uid(file_meta: bytes, element: int) -> str:
    """Return the UID in element (0002,element) of a file meta group, "" when it is not there.

    The group is always explicit VR little endian (PS3.10 section 7.1).
    """
    key = b"\x02\x00" + element.to_bytes(2, "little") + b"UI"
    at = file_meta.find(key, 132)
    if at < 0:
        return ""
    length = int.from_bytes(file_meta[at + 6 : at + 8], "little")
    value = file_meta[at + 8 : at + 8 + length]
    return value.rstrip(b"\0 ").decode("ascii", "replace")
