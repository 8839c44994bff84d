"""The records of every ledger in a bucket that some identities can read, with nothing else known.

Reads only, and believes no more than recovery must: who signed is not asked, for no key is known
here; images prove themselves by the hashes beside them. An entry that these identities don't open,
or that is damaged, is looked for in the checkpoints, which are sealed anew when somebody is added.
"""

import io
from collections.abc import Callable, Container, Iterator, Sequence

from appliance.archive.checkpoint import CheckpointReader
from appliance.archive.checkpoint_name import CheckpointName
from appliance.archive.ledger_entry import entry_key, open_entry
from appliance.archive.records import Record
from appliance.foundation.errors import (
    AzekuraError,
    CloudError,
    SealedToOthers,
    StorageFailed,
)
from appliance.remote.reading import READ_BYTES, ObjectReader, oldest_versions
from appliance.remote.store import ObjectStore, VersionInfo
from appliance.seal.identity import Identity


class _Anybody(Container[str]):
    def __contains__(self, key: object) -> bool:
        return True


def readable_records(
    store: ObjectStore, identities: Sequence[Identity], tell: Callable[[str], object]
) -> Iterator[Record]:
    """Yield every record; `tell` is called with a line for what is damaged or can't be read."""
    unread: set[str] = set()
    damaged: set[str] = set()
    for version in oldest_versions(store, "ledger/"):
        try:
            entry = open_entry(store.get(version.key, version.version_id), identities)
        except (CloudError, StorageFailed):
            raise
        except AzekuraError as error:
            unread.add(version.key)
            if not isinstance(error, SealedToOthers):
                tell(f"{version.key}: {error}")
                damaged.add(version.key)
            continue
        yield from entry.records
    if unread:
        yield from _consolidated(store, identities, unread, tell)
    for key in sorted(unread - damaged):
        tell(f"{key}: it is sealed to others, and no checkpoint that opens has it")


def _consolidated(
    store: ObjectStore,
    identities: Sequence[Identity],
    unread: set[str],
    tell: Callable[[str], object],
) -> Iterator[Record]:
    """Yield what checkpoints have of the entries at some keys, and drop those keys."""
    for version in oldest_versions(store, "checkpoints/"):
        name = CheckpointName.parse(version.key)
        if name is None or not _missing(name, unread):
            continue
        try:
            for key, records in _read(store, identities, name, version):
                if key in unread:
                    unread.remove(key)
                    yield from records
        except SealedToOthers:
            continue
        except (CloudError, StorageFailed):
            raise
        except AzekuraError as error:
            tell(f"{version.key}: {error}")


def _missing(name: CheckpointName, unread: Container[str]) -> bool:
    keys = (entry_key(name.node, each) for each in range(name.range.first, name.range.last + 1))
    return any(key in unread for key in keys)


def _read(
    store: ObjectStore,
    identities: Sequence[Identity],
    name: CheckpointName,
    version: VersionInfo,
) -> Iterator[tuple[str, list[Record]]]:
    source = ObjectReader(store, version.key, version.version_id, version.size_bytes)
    with io.BufferedReader(source, READ_BYTES) as file:
        for entry in CheckpointReader(file, identities, name, _Anybody()).entries():
            yield entry_key(name.node, entry.header.sequence), entry.records()
