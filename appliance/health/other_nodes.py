"""Whether nodes write heartbeats into the bucket that this one does not follow."""

from collections.abc import Collection
from itertools import islice

from appliance.foundation.errors import CloudError
from appliance.health.check import Findings, ok, warning
from appliance.remote.store import ObjectStore

CONDITION = "other_nodes"
NODES_MAX = 1000
SHOWN_MAX = 10
_PREFIX, _ENDING = "nodes/", ".json"


def check_other_nodes(store: ObjectStore, own: str, signers: Collection[str]) -> Findings:
    """Compare who beats in the bucket with whose keys are known here.

    A name alone proves nothing: whoever can write to the bucket can leave one.
    """
    try:
        keys = [each.key for each in islice(store.objects(_PREFIX), NODES_MAX)]
    except CloudError:
        return []  # the checks of bucket and rights say so
    names = {key.removeprefix(_PREFIX).removesuffix(_ENDING) for key in keys}
    strangers = sorted(names - {own, *signers})
    if not strangers:
        return [ok(CONDITION, "no node beats in the bucket that is not known here")]
    shown = ", ".join(strangers[:SHOWN_MAX])
    return [
        warning(
            CONDITION,
            f"{len(strangers)} nodes beat in the bucket and are not in keys.signers: {shown}",
            "What they store is not found here. Name each one that is yours, with the key that "
            "`azekura key list` shows there; one that is nobody's was left by somebody else",
        )
    ]
