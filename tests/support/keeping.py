"""The parts that keep and erase, over a box: what the uplink's loop and an administrator have."""

from appliance.archive.disposal import Disposal
from appliance.archive.disposal_plan import FORMAT, Intents, Plan, PlanFile, planned
from appliance.archive.erase import Erasure
from appliance.archive.erased_copies import ErasedCopies
from appliance.archive.expiry import term_of
from appliance.archive.holds import Holder
from appliance.archive.retain import Retainer
from appliance.foundation.clock import isoformat
from appliance.remote.store import ObjectStore
from appliance.seal.signing import SigningKey
from tests.support.archive_box import DAY_S, NODE, Box, Sample

RETENTION_S = 30 * DAY_S


def received(box: Box, *samples: Sample) -> list[str]:
    """Bring instances to verified in a pack of their own; return the ids of the new packs."""
    before = set(box.pack_ids())
    for each in samples:
        box.store_sample(each)
    box.drain()
    return [each for each in box.pack_ids() if each not in before]


def retainer(box: Box) -> Retainer:
    """Return what extends locks, as a start of the uplink makes it."""
    return Retainer(box.clock, box.index, box.store, box.uplink.record)


def holder(box: Box) -> Holder:
    """Return what brings holds into the bucket, as a start of the uplink makes it."""
    return Holder(box.clock, box.index, box.store)


def intents(box: Box) -> Intents:
    """Return where the intents of a box lie."""
    return Intents(box.files, box.layout.erasures)


def disposal(box: Box) -> Disposal:
    """Return what settles erasures, as a start of the uplink makes it."""
    return Disposal(
        box.clock, box.index, box.store, intents(box),
        SigningKey.load(str(box.folder / "signing.pem")), box.uplink.record,
        ErasedCopies(box.files, box.layout, box.index),
    )  # fmt: skip


def erasure(box: Box, store: ObjectStore) -> Erasure:
    """Return an administrator's run; `store` is the bucket under another credential."""
    return Erasure(box.clock, box.index, store, intents(box), RETENTION_S)


def plan_of(box: Box, *studies: str) -> PlanFile:
    """Return a plan of studies, made now, whether they have expired or not."""
    with box.index.read() as view:
        parts = [planned(term_of(view, study, RETENTION_S)) for study in studies]
    plan = Plan(FORMAT, NODE, "", "bucket", "", isoformat(box.clock.now()), "planner", parts)
    return PlanFile(plan, plan.sha256())


def settled(box: Box, each: Disposal, sha256: str) -> str:
    """Settle an erasure, writing the ledger in between; return where the certificate lies."""
    for _ in range(3):
        path = each.settle(sha256)
        if path is not None:
            return path
        box.write_ledger()
    raise AssertionError("not settled")
