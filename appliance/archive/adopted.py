"""The configurations that followed nodes have published: the latest of each.

Owns `state/adopted.json`, written by whoever follows the ledgers, beside how far they are followed,
and read by everybody. Who loses `state/` follows from the beginning, and finds them again. What is
made of it is decided in `config.adopting`.
"""

import os
import threading

import msgspec

from appliance.archive.layout import Layout
from appliance.archive.problem import Problem
from appliance.archive.records import Configured, Record
from appliance.config.adopting import Adopted, Published, adopt
from appliance.config.model import Config
from appliance.foundation import log
from appliance.foundation.files import FileSystem

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

    def take(self, node: str, sequence: int, record: Record) -> None:
        """Take in what an entry that was proved says; an older one changes nothing."""
        if not isinstance(record, Configured):
            return
        with self._lock:
            known = self._sources.get(node)
            if known is not None and known.sequence > sequence:
                return
            self._sources = self._sources | {node: Source(sequence, record)}
            self._files.write_atomic(_path(self._layout), msgspec.json.encode(self._sources))
        _log.info("configuration_adopted", node=node, sequence=sequence)


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
