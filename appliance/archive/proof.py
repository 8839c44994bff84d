"""Whether the bucket still holds a pack as it was verified: by its word, by its list, by its bytes.

Must not change anything. Asked of the bucket itself, never of a replica.
"""

from collections.abc import Callable

from appliance.foundation.clock import to_microseconds
from appliance.foundation.errors import Damaged, ObjectArchived
from appliance.index.facts import CloudFacts
from appliance.remote.reading import ObjectReader
from appliance.remote.store import ObjectStore
from appliance.seal.age import DECRYPT_BATCH_CHUNKS, SEALED_CHUNK_BYTES, AgeRange

ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
READ_BYTES = DECRYPT_BATCH_CHUNKS * SEALED_CHUNK_BYTES


def prove(store: ObjectStore, cloud: CloudFacts) -> None:
    """Ask the bucket whether it still holds that version as it was: one request.

    Damaged when it is another than was verified, ObjectMissing when it is gone, ObjectArchived when
    it lies where it can't be read at once, CloudError.
    """
    info = store.head(cloud.key, cloud.version_id)
    if info.storage_class in ARCHIVE_CLASSES:
        raise ObjectArchived(
            "prove a copy", cloud.key, f"it lies in the storage class {info.storage_class}",
            "A lifecycle rule moved it there: take the rule off the bucket",
        )  # fmt: skip
    if info.size_bytes != cloud.size or str(info.checksum) != cloud.checksum:
        raise Damaged(
            "prove a copy", cloud.key, "the bucket's version is not what was verified",
            "It is not evicted; run azekura verify --cloud",
        )  # fmt: skip
    if cloud.locked_until_us:
        until = to_microseconds(info.lock.until) if info.lock is not None else 0
        if until < cloud.locked_until_us:
            raise Damaged(
                "prove a copy", cloud.key, "its lock is gone or shorter",
                "It is not evicted; look at the bucket's Object Lock",
            )  # fmt: skip


def look_over(store: ObjectStore, cloud: CloudFacts) -> str:
    """Return what lies over the version in the bucket's list, empty for nothing: one request.

    A delete marker or a further version hides it from whoever does not ask by version id.
    """
    for version in store.versions(cloud.key):
        if version.key != cloud.key:
            continue
        if version.is_delete_marker:
            return "a delete marker lies over it"
        if version.version_id != cloud.version_id:
            return "another version lies over it"
        return ""
    return "the bucket does not list it"


def reread_requests(cloud: CloudFacts) -> int:
    """Return how many requests `reread` makes."""
    return -(-cloud.size // READ_BYTES)


def reread(
    store: ObjectStore, cloud: CloudFacts, advance: Callable[[int], None] | None = None
) -> None:
    """Read a copy whole and open it; `advance` is told of each read's length, and may end it.

    DecryptionFailed when any byte is not what was stored, ObjectMissing, CloudError.
    """
    age = AgeRange(cloud.file_key, cloud.age_header, cloud.size)
    reader = ObjectReader(store, cloud.key, cloud.version_id, cloud.size)
    reader.seek(age.payload_offset)
    first = 0
    while sealed := reader.read(READ_BYTES):
        age.decrypt_range(sealed, first)
        first += DECRYPT_BATCH_CHUNKS
        if advance is not None:
            advance(len(sealed))
