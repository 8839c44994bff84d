"""Whether this node takes new studies now: an appliance does, a standby when it is told to.

Owns that decision. Must not refuse anything itself: whoever receives asks. Reading is cheap: the
files of `state/` are looked at again after `LOOK_S`.

Invariant: what is not known, or not any more, never opens a standby that waits for silence.
"""

import threading

from appliance.archive.layout import Layout
from appliance.archive.nodes import nodes_now, site_is_lost
from appliance.archive.retire import retired_at
from appliance.config.model import Config
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.errors import NotAccepting

LOOK_S = 1.0

_log = log.get("accepting")


class Accepting:
    """The answer for one process; any thread may ask. `_lock` guards what was last seen."""

    def __init__(self, layout: Layout, clock: Clock, config: Config) -> None:
        self._layout = layout
        self._clock = clock
        self._is_standby = config.node.role == "standby"
        self._standby = config.standby
        self._lock = threading.Lock()
        self._refusal: str | None = None
        self._next_look_s: float | None = None

    @property
    def refusal(self) -> str | None:
        """Why no study is taken now; None when studies are."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            first = self._next_look_s is None
            if self._next_look_s is None or now_s >= self._next_look_s:
                before, self._refusal = self._refusal, self._look()
                self._next_look_s = now_s + LOOK_S
                if before != self._refusal and not first:
                    _log.info("stores", taken=self._refusal is None, reason=self._refusal or "")
            return self._refusal

    @property
    def is_open(self) -> bool:
        """Whether studies are taken now."""
        return self.refusal is None

    def require(self) -> None:
        """Raise NotAccepting when no study is taken now."""
        if (refusal := self.refusal) is not None:
            raise NotAccepting("store", "", refusal, "Send to the site, or see standby in status")

    def _look(self) -> str | None:
        if retired_at(self._layout):
            return "this node is retired"
        if not self._is_standby or self._standby.accept_stores == "always":
            return None
        if self._standby.accept_stores == "never":
            return "this standby takes no studies"
        if site_is_lost(nodes_now(self._layout, self._clock)):
            return None
        return "no site is silent: this standby takes none"
