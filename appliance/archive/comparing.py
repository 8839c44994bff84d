"""Two indexes side by side: what the node knows of a study, and what the bucket alone says of it.

Reads both. What only the node has because it is new (pending, or in an entry that was written after
the ledgers were read) is no difference: such a study is not compared.
"""

from collections.abc import Mapping, Sequence

from appliance.archive.catalogue import LedgerRecord
from appliance.archive.freshness import Freshness
from appliance.archive.queries import (
    INSTANCE_AVAILABILITY,
    RETRIEVE_AE_TITLE,
    STUDY_UID,
    Queries,
    Value,
)
from appliance.archive.query import Query
from appliance.archive.records import PackRecord
from appliance.config.model import Config
from appliance.dicom.attributes import ATTRIBUTES, Level
from appliance.dicom.identifier import Identifier
from appliance.index.index import Index
from appliance.index.keeping import packs_of

_LEVELS = (Level.STUDY, Level.SERIES, Level.INSTANCE)
_BY_PLACE = {INSTANCE_AVAILABILITY, RETRIEVE_AE_TITLE}
"""Where the bytes are and who was asked: no part of what is restored."""


class Comparison:
    """Compares the index of this node with a scratch index. Used by one thread."""

    def __init__(
        self, config: Config, live: Index, freshness: Freshness, scratch: Index, still: Freshness
    ) -> None:
        """`still`: the freshness of a folder in which nobody writes."""
        self._live = live
        self._queries = Queries(config, live, freshness), Queries(config, scratch, still)

    def differing(self, record: PackRecord, came_back: set[tuple[str, bytes]]) -> int:
        """Return how many (SOP Instance UID, sha256) of a pack the node's index knows otherwise.

        A pack that it does not know at all is judged with the study's answers.
        """
        with self._live.read() as view:
            if view.pack(record.pack_id) is None:
                return 0
            known = {
                (instance.sop_instance_uid, version.sha256)
                for instance, version, _ in view.pack_instances(record.pack_id)
            }
        return len(came_back - known)

    def answers(
        self,
        study_instance_uid: str,
        packs: Sequence[LedgerRecord],
        last: Mapping[str, int],
        findings: list[str],
    ) -> int | None:
        """Compare the answers of C-FIND at three levels; return how many were compared.

        None when the study is in change. `last`: up to where each node's ledger was read.
        """
        if not self._same_packs(study_instance_uid, packs, last, findings):
            return None
        count = 0
        for level in _LEVELS:
            ours, theirs = (self._ask(each, study_instance_uid, level) for each in self._queries)
            count += len(ours)
            if ours != theirs:
                differing = sum(one not in theirs for one in ours)
                findings.append(
                    f"C-FIND at level {level}: {differing} of {len(ours)} answers of this node are "
                    f"not among the {len(theirs)} that the bucket gives"
                )
        return count

    def _same_packs(
        self,
        study_instance_uid: str,
        packs: Sequence[LedgerRecord],
        last: Mapping[str, int],
        findings: list[str],
    ) -> bool:
        listed = {
            each.record.pack_id: each for each in packs if isinstance(each.record, PackRecord)
        }
        with self._live.read() as view:
            nodes = view.nodes()
            # Not the packs of what is served: what is hidden, or older, lies in some too.
            clouds = {row.pack_id: row.cloud for row in packs_of(view, study_instance_uid)}
        here = clouds.keys()
        same = True
        for pack_id, each in listed.items():
            if pack_id not in here:
                same = False
                if nodes.get(each.node, -1) >= each.sequence:
                    findings.append(f"pack {pack_id}: this node's index does not know it")
        for pack_id in here - listed.keys():
            same = False
            cloud = clouds.get(pack_id)
            if cloud is not None and last.get(cloud.node, 0) >= cloud.sequence:
                findings.append(f"pack {pack_id}: no ledger in the bucket names it")
        return same

    def _ask(
        self, queries: Queries, study_instance_uid: str, level: Level
    ) -> list[dict[int, Value]]:
        keys: dict[int, Value] = {
            each.tag: "" for each in ATTRIBUTES if each.level is level and each.tag not in _BY_PLACE
        }
        if level is Level.STUDY:
            # A patient's own attributes are the study's; the counts are over all its studies.
            keys |= {
                each.tag: ""
                for each in ATTRIBUTES
                if each.level is Level.PATIENT and not each.computed
            }
        keys[STUDY_UID] = study_instance_uid
        identifier = Identifier(str(level), keys, "", list(keys), [])
        found = list(queries.find(Query("STUDY", str(level), identifier), ""))
        for answer in found:
            for tag in _BY_PLACE:
                answer.pop(tag, None)
        return sorted(found, key=repr)
