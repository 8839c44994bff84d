"""What the uplink does with the other nodes of the bucket besides following their ledgers.

Owns how heartbeats and the published configuration are put together; decides nothing.
"""

import secrets

from appliance import __version__
from appliance.archive.adopted import Source, adoption_problems, read_sources
from appliance.archive.heartbeats import Heartbeats, Own
from appliance.archive.problem import Problem
from appliance.archive.publishing import Publisher
from appliance.archive.uplink import Uplink
from appliance.config.model import Config
from appliance.daemons.parts import Parts
from appliance.remote.store import ObjectStore
from appliance.seal.signing import SigningKey

TURN_S = 1.0


class Neighbours:
    """Heartbeats, ours and theirs, and what we publish. `turn` belongs to one thread."""

    def __init__(
        self,
        parts: Parts,
        store: ObjectStore,
        uplink: Uplink | None,
        signing_key: SigningKey | None,
    ) -> None:
        """`uplink`: None on a node that writes no ledger; it beats all the same if it has a key."""
        config = parts.config
        self._config, self._layout = config, parts.layout
        # What could not be adopted, and of which publications; belongs to who asks `problems`.
        self._sources: dict[str, Source] = {}
        self._adoption: list[Problem] = []
        self._uplink = uplink
        self._heartbeats = Heartbeats(
            parts.files, parts.clock, store, parts.layout, config.node.name, config.node.role,
            f"azekura {__version__}", signing_key,
            config.keys.signers, config.standby.silent_after_s, config.standby.retired, self._own,
        )  # fmt: skip
        self._publisher = (
            Publisher(parts.files, parts.clock, parts.layout, uplink.record) if uplink else None
        )
        self._incarnation = secrets.token_hex(16)

    def turn(self) -> None:
        """Beat and listen, when it is time to."""
        self._heartbeats.turn()

    def publish(self, config: Config) -> None:
        """Let the ledger say what a standby needs of a site's configuration."""
        if config.node.role == "appliance" and self._publisher is not None:
            self._publisher.publish(config.dicom)

    def problems(self) -> list[Problem]:
        """Return what is wrong with the others, as seen from here."""
        sources = read_sources(self._layout)
        if sources != self._sources:
            self._adoption = adoption_problems(self._config, self._layout)
            self._sources = sources
        return [*self._heartbeats.problems(), *self._adoption]

    def _own(self) -> Own | None:
        """Return what the heartbeat says; None while another box may have this node's name."""
        if self._uplink is None:
            return Own(0, self._incarnation)
        if not self._uplink.owns_name:
            return None
        return Own(self._uplink.sequence, self._uplink.incarnation)
