"""The configurations that followed nodes have published: the latest of each.

Owns `state/adopted.json`, written by whoever follows the ledgers and read by everybody. It follows
from the ledgers, so that losing it loses nothing: `Adopted.recall` reads it out of their local
copies again. What is made of it is decided in `config.adopting`.
"""

import os
import threading
from collections.abc import Iterable, Sequence

import msgspec

from appliance.archive.layout import Layout
from appliance.archive.ledger_entry import open_entry
from appliance.archive.problem import Problem
from appliance.archive.records import Configured, Record
from appliance.config.adopting import Adopted, Published, adopt
from appliance.config.model import Config
from appliance.foundation import log
from appliance.foundation.errors import AzekuraError
from appliance.foundation.files import FileSystem
from appliance.seal.identity import Identity

_log = log.get("adopted")


class Source(msgspec.Struct, frozen=True):
    """A published configuration and the sequence of the entry that holds it."""

    sequence: int
    configured: Configured


class AdoptedBook:
    """The latest record of each node. `_lock` guards `_sources`; several threads may follow."""

    def __init__(self, files: FileSystem, layout: Layout) -> None:
        self._files = files
        self._layout = layout
        self._lock = threading.Lock()
        self._sources = read_sources(layout)

    def take(self, node: str, sequence: int, records: Iterable[Record]) -> None:
        """Take in what an entry says, once it was proved; an older one changes nothing."""
        found = [each for each in records if isinstance(each, Configured)]
        if not found:
            return
        with self._lock:
            known = self._sources.get(node)
            if known is not None and known.sequence >= sequence:
                return
            self._sources = self._sources | {node: Source(sequence, found[-1])}
            self._files.write_atomic(_path(self._layout), msgspec.json.encode(self._sources))
        _log.info("configuration_adopted", node=node, sequence=sequence)

    def recall(self, nodes: Iterable[str], identities: Sequence[Identity]) -> None:
        """Read what is not known of these nodes out of the local copies, which were proved."""
        for node in nodes:
            if node not in self._sources:
                self._recall_one(node, identities)

    def _recall_one(self, node: str, identities: Sequence[Identity]) -> None:
        directory = os.path.join(self._layout.ledger, node)
        try:
            names = sorted(os.listdir(directory), reverse=True)
        except FileNotFoundError:
            return
        for name in names:
            number = name.removesuffix(".json.gz.age")
            if not number.isdecimal():
                continue
            try:
                with open(os.path.join(directory, name), "rb") as file:
                    records = open_entry(file.read(), identities).records
            except (AzekuraError, OSError) as error:
                _log.warning("copy_not_read", node=node, error=type(error).__name__)
                continue
            if any(isinstance(each, Configured) for each in records):
                self.take(node, int(number), records)
                return


def _path(layout: Layout) -> str:
    return os.path.join(layout.state, "adopted.json")


def read_sources(layout: Layout) -> dict[str, Source]:
    """Return what each node has published, by name."""
    try:
        with open(_path(layout), "rb") as file:
            return msgspec.json.decode(file.read(), type=dict[str, Source])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def adopted_by(config: Config, layout: Layout) -> Adopted:
    """Return the configuration that counts: of a standby, with what the sites have published.

    A node whose signer is no longer configured is no longer heeded.
    """
    if config.node.role != "standby":
        return Adopted(config, [], [])
    published = {
        node: Published(
            source.configured.ae_titles,
            source.configured.issuer,
            source.configured.extra_sop_classes,
            source.configured.peers,
        )
        for node, source in read_sources(layout).items()
        if node in config.keys.signers
    }
    return adopt(config, published)


def adoption_problems(config: Config, layout: Layout) -> list[Problem]:
    """Return what of the published configurations could not be taken."""
    conflicts = adopted_by(config, layout).conflicts
    if not conflicts:
        return []
    return [
        Problem(
            "adopted",
            "of the sites' configurations: " + "; ".join(conflicts),
            "List such a peer in this node's own file: what is written there counts",
        )
    ]
