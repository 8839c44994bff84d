"""Getting files back from bucket and key alone: nothing of the dead site is needed.

Reads only. What the ledger of any node names is recovered first, an identity that was added later
by what checkpoints say; packs that no readable entry names are taken from the listing, so that a
damaged ledger loses no image. What is wrong with one pack or
one member becomes a finding, and the rest goes on. Two versions that two packs hold under one name
are both kept.
"""

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import msgspec

from appliance.archive.readable import readable_records
from appliance.archive.records import Erased, PackRecord
from appliance.foundation import log
from appliance.foundation.errors import (
    AzekuraError,
    CloudRefused,
    CloudUnavailable,
    Damaged,
    StorageFailed,
)
from appliance.remote.reading import READ_BYTES, ObjectReader, oldest_versions
from appliance.remote.store import ObjectStore
from appliance.seal.age import decrypt_file
from appliance.seal.identity import Identity
from appliance.seal.stream import PieceStream

HASH_BYTES = 2**18

MEMBER_NAME = re.compile(r"[0-9A-Za-z.~-]{1,128}/[0-9A-Za-z.~-]{1,128}")
"""A name that a recovered file may have: one folder, one file; tar's own may lead anywhere."""

_log = log.get("recover")


class Found(msgspec.Struct, frozen=True):
    """A pack in the bucket: its version, and the studies and hashes that the ledger tells of it.

    `file_key` opens it for who is none of its recipients; empty where no ledger tells it.
    """

    key: str
    version_id: str
    size_bytes: int
    studies: frozenset[str] = frozenset()
    sha256_by_instance: dict[str, list[bytes]] = {}
    file_key: bytes = b""


class _Comment(msgspec.Struct):
    """What a member's pax header says; only its digest is of use here."""

    sha256: str


class Outcome(msgspec.Struct):
    """What a recovery brought: counts, and a line for everything that is wrong."""

    packs: int = 0
    instances: int = 0
    bytes: int = 0
    findings: list[str] = []


def find_packs(
    store: ObjectStore, identities: Sequence[Identity], outcome: Outcome
) -> Iterator[Found]:
    """Yield every pack in the bucket once, those that a ledger names with what it says.

    What a ledger says was erased is not looked for, unless the bucket has it still.
    """
    named: dict[str, Found] = {}
    erased: set[str] = set()
    for record in readable_records(store, identities, outcome.findings.append):
        if isinstance(record, PackRecord) and record.key not in named:
            named[record.key] = _found(record)
        elif isinstance(record, Erased):
            erased.add(record.key)
    yield from (found for key, found in named.items() if key not in erased)
    for version in oldest_versions(store, "packs/"):
        if version.key not in named or version.key in erased:
            yield Found(version.key, version.version_id, version.size_bytes)


def _found(record: PackRecord) -> Found:
    hashes: dict[str, list[bytes]] = {}
    for instance in record.instances:
        hashes.setdefault(instance.sop_instance_uid, []).append(instance.sha256)
    return Found(
        key=record.key,
        version_id=record.version_id,
        size_bytes=record.size_bytes,
        studies=frozenset(each.study_instance_uid for each in record.contexts),
        sha256_by_instance=hashes,
        file_key=record.file_key,
    )


def recover_pack(
    store: ObjectStore,
    identities: Sequence[Identity],
    found: Found,
    target: str,
    outcome: Outcome,
    advance: Callable[[float], None],
) -> None:
    """Write the instances of one pack below `target`; what is wrong becomes a finding."""
    reader = io.BufferedReader(
        ObjectReader(store, found.key, found.version_id, found.size_bytes), READ_BYTES
    )
    hashes = {each for many in found.sha256_by_instance.values() for each in many}
    try:
        pieces = decrypt_file(reader, identities, found.file_key)
        with tarfile.open(fileobj=io.BufferedReader(PieceStream(pieces)), mode="r|") as tar:
            for member in tar:
                if member.isreg() and member.name.endswith(".dcm"):
                    _extract(tar, member, target, hashes, outcome)
        outcome.packs += 1
    except (CloudUnavailable, CloudRefused, StorageFailed):
        raise
    except (tarfile.TarError, AzekuraError) as error:
        outcome.findings.append(f"{found.key}: {error}")
    advance(found.size_bytes)


def _extract(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    target: str,
    hashes: set[bytes],
    outcome: Outcome,
) -> None:
    """Write one instance; where its name is taken by another version, under a name of its own."""
    name = member.name
    if not MEMBER_NAME.fullmatch(name) or ".." in name.split("/"):
        outcome.findings.append(f"{name!r}: no name of a member; nothing was written")
        return
    path = os.path.join(target, name)
    told = told_sha256(member)
    if told and os.path.exists(path) and dataset_sha256(path) != told:
        name = f"{name.removesuffix('.dcm').partition('~')[0]}~{told.hex()[:8]}.dcm"
        path = os.path.join(target, name)
    source = tar.extractfile(member)
    assert source is not None  # a regular file has bytes
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with source, open(path, "wb") as file:
        shutil.copyfileobj(source, file)
    try:
        digest = dataset_sha256(path)
    except Damaged as error:
        outcome.findings.append(f"{path}: {error.cause}")
    else:
        if digest != told or (hashes and digest not in hashes):
            outcome.findings.append(f"{path}: not what was received")
    outcome.instances += 1
    outcome.bytes += member.size


def told_sha256(member: tarfile.TarInfo) -> bytes:
    """Return the digest of the dataset that the member's pax header names, empty for none."""
    try:
        found = msgspec.json.decode(member.pax_headers.get("comment", ""), type=_Comment)
        return bytes.fromhex(found.sha256)
    except (msgspec.DecodeError, ValueError):
        return b""


def dataset_sha256(path: str) -> bytes:
    """Return the sha256 of the dataset in a Part 10 file: all that follows the file meta group."""
    with open(path, "rb") as file:
        return part10_sha256(file, path)


def part10_sha256(file: IO[bytes], name: str) -> bytes:
    """Return the sha256 of the dataset in a Part 10 stream, read from its beginning to its end."""
    prefix = file.read(144)
    # (0002,0000) comes first: it counts the bytes of the group behind it (PS3.10 7.1).
    if prefix[128:132] != b"DICM":
        raise Damaged("recover", name, "not a Part 10 file")
    left = int.from_bytes(prefix[140:144], "little")
    while left and (skipped := file.read(min(left, READ_BYTES))):
        left -= len(skipped)
    digest = hashlib.sha256()
    while piece := file.read(HASH_BYTES):
        digest.update(piece)
    return digest.digest()
