"""Until when an object is locked: by the bucket's own clock, never by a bucket default.

Invariant: where the bucket's clock and this box's are far apart, one of them is wrong, and nothing
is locked: a date under compliance mode can't be taken back, and one too early protects nobody.
"""

from collections.abc import Sequence
from datetime import timedelta

from appliance.config.model import RetentionRule
from appliance.foundation.clock import Clock
from appliance.foundation.errors import CloudMisconfigured
from appliance.index.facts import InstanceFacts
from appliance.remote.store import Lock, LockMode, ObjectStore

CLOCKS_APART_MAX = timedelta(days=1)
_MODALITY = 0x00080060

_MODES: dict[str, LockMode | None] = {
    "compliance": "COMPLIANCE",
    "governance": "GOVERNANCE",
    "off": None,
}


class Retention:
    """The lock that a new object gets. With mode `off` there is none."""

    def __init__(
        self,
        store: ObjectStore,
        mode: str,
        retention_s: float,
        clock: Clock,
        rules: Sequence[RetentionRule] = (),
    ) -> None:
        self._store = store
        self._clock = clock
        self._mode: LockMode | None = _MODES[mode]
        self._retention_s = retention_s
        self._rules = rules

    def seconds_for(self, instances: Sequence[InstanceFacts]) -> float:
        """Return how long a pack of these instances is kept: as the longest-kept of them."""
        return max((self._seconds(each) for each in instances), default=self._retention_s)

    def _seconds(self, instance: InstanceFacts) -> float:
        for rule in self._rules:
            if fits(rule, instance):
                return rule.retention_s
        return self._retention_s

    def lock(self, retention_s: float | None = None) -> Lock | None:
        """Return the lock from now on; asks the bucket for its time, so CloudError may come.

        Without `retention_s` it is the longest of all, for what names packs.
        CloudMisconfigured when its clock and ours are more than CLOCKS_APART_MAX apart.
        """
        if self._mode is None:
            return None
        theirs, ours = self._store.server_time(), self._clock.now()
        if abs(theirs - ours) > CLOCKS_APART_MAX:
            raise CloudMisconfigured(
                "set a lock", "", f"it is {ours:%Y-%m-%d} here and {theirs:%Y-%m-%d} at the bucket",
                "A lock's date can't be taken back, so nothing is sent until both agree: check "
                "this box's clock and NTP (timedatectl), then what stands between here and the "
                "bucket",
            )  # fmt: skip
        if retention_s is None:
            retention_s = max([self._retention_s, *(rule.retention_s for rule in self._rules)])
        until = theirs + timedelta(seconds=retention_s)
        return Lock(self._mode, until.replace(microsecond=0))


def fits(rule: RetentionRule, instance: InstanceFacts) -> bool:
    """Return whether every condition of a rule fits an instance."""
    modality = instance.attributes.get(_MODALITY, "")
    return (
        (not rule.modalities or modality in rule.modalities)
        and (not rule.calling_ae_titles or instance.calling_ae in rule.calling_ae_titles)
        and (not rule.called_ae_titles or instance.called_ae in rule.called_ae_titles)
    )
