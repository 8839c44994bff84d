"""What is wrong with a followed ledger in the bucket: named, bounded, kept until the bucket heals.

Owns `Findings` of one ledger; who follows it (`follow`) looks, judges, and writes them down.

Invariants:
- The same thing found again is one finding; neighbours of one kind are one finding with a range.
- At most FINDINGS_MAX findings are kept of a ledger; `more` says that there were others.
- A finding goes when the bucket shows that it no longer holds, never by age.
"""

from collections.abc import Collection, Iterator
from enum import StrEnum

import msgspec

from appliance.archive.problem import Problem

FINDINGS_MAX = 200
SHOWN_MAX = 5


class Kind(StrEnum):
    """The name of each thing that can be wrong."""

    MISSING = "missing"
    REMOVED = "removed"
    UNREADABLE = "unreadable"
    ALTERED = "altered"
    FORGED = "forged"
    SWAPPED = "swapped"
    REPLAYED = "replayed"
    CHAIN = "chain"
    HIDDEN = "hidden"
    OVERWRITTEN = "overwritten"
    CHECKPOINT = "checkpoint"


NOT_TRUSTED = frozenset({Kind.UNREADABLE, Kind.ALTERED, Kind.FORGED, Kind.SWAPPED, Kind.REPLAYED})
NOT_APPLIED = NOT_TRUSTED | {Kind.MISSING}
"""With these the entry's records are not in the index: it is looked for again and again."""

_SENTENCES = {
    Kind.MISSING: "is missing in the bucket, and later ones are there",
    Kind.REMOVED: "was in the bucket and is gone; what it says is known here",
    Kind.UNREADABLE: "can't be read with this node's identities",
    Kind.ALTERED: "is not what was written: its bytes were changed",
    Kind.FORGED: "is not signed by a key that keys.signers gives this node",
    Kind.SWAPPED: "holds an entry of another node",
    Kind.REPLAYED: "holds an entry of another sequence of the same node",
    Kind.CHAIN: "is rightly signed and does not follow from the entry before it",
    Kind.HIDDEN: "has a delete marker; its first version is read all the same",
    Kind.OVERWRITTEN: "has a newer version; the first one counts",
    Kind.CHECKPOINT: "is in a checkpoint that is damaged, forged or of another history; single "
    "entries are read in its place",
}
_INTRUDER = (
    "Somebody else can write to the bucket: change its credentials, and look at its access log"
)
_HINTS = {
    Kind.MISSING: "The rest is served. See who may delete in the bucket, and restore the entry "
    "from another node's copy in its ledger/ folder",
    Kind.REMOVED: "See who may delete in the bucket, and restore the entry from this node's "
    "copy in its ledger/ folder",
    Kind.UNREADABLE: "If this node was added later: list its recipient in keys.recipients there "
    "and let it write a checkpoint. Else the entry was replaced, or this node may not read it",
    Kind.CHAIN: "Two boxes write under this name, or the box was set back to an older state",
    Kind.HIDDEN: "Nothing is lost. Remove the marker, and see who may delete in the bucket",
}


class Finding(msgspec.Struct, frozen=True):
    """One thing found: what, at which sequences (first to last), since when, and more of it."""

    what: Kind
    first: int
    last: int
    at: str
    detail: str = ""


class Findings:
    """The findings of one node's ledger. Used by one thread."""

    def __init__(
        self, node: str, found: list[Finding] | None = None, *, more: bool = False
    ) -> None:
        self.node = node
        self.more = more
        self._found = sorted(found or [], key=_place)

    def __iter__(self) -> Iterator[Finding]:
        """Yield the findings, by sequence."""
        return iter(list(self._found))

    def __len__(self) -> int:
        return len(self._found)

    def add(self, what: Kind, first: int, last: int, at: str, detail: str = "") -> bool:
        """Take a finding in; False when nothing changes."""
        changed = False
        for start, end in self._unknown(what, first, last):
            changed = self._put(Finding(what, start, end, at, detail)) or changed
        return changed

    def clear(self, what: Kind, first: int, last: int) -> bool:
        """Let go what no longer holds of these sequences; False when nothing changes."""
        kept: list[Finding] = []
        changed = False
        for each in self._found:
            if each.what is not what or each.last < first or each.first > last:
                kept.append(each)
                continue
            changed = True
            if each.first < first:
                kept.append(msgspec.structs.replace(each, last=first - 1))
            if each.last > last:
                kept.append(msgspec.structs.replace(each, first=last + 1))
        self._found = sorted(kept, key=_place)
        if not self._found:
            self.more = False
        return changed

    def holds(self, kinds: Collection[Kind], sequence: int) -> bool:
        """Tell whether there is a finding of one of these kinds at a sequence."""
        return any(each.first <= sequence <= each.last and each.what in kinds for each in self)

    def not_covered(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the parts of a range of which no finding says that they are not applied."""
        parts = []
        for each in self._found:
            if each.what not in NOT_APPLIED or each.last < first or each.first > last:
                continue
            if each.first > first:
                parts.append((first, each.first - 1))
            first = each.last + 1
        if first <= last:
            parts.append((first, last))
        return parts

    def heal(self, sequence: int) -> bool:
        """Let go what said that this entry is not applied; False when nothing did."""
        healed = [self.clear(what, sequence, sequence) for what in NOT_APPLIED]
        return any(healed)

    def first_not_applied(self, after: int) -> int | None:
        """Return the first sequence behind `after` whose entry is looked for, None when none is."""
        starts = [
            max(each.first, after + 1)
            for each in self._found
            if each.what in NOT_APPLIED and each.last > after
        ]
        return min(starts, default=None)

    def not_applied(self) -> list[tuple[int, int]]:
        """Return the ranges of entries that are not applied, by their first."""
        return [(each.first, each.last) for each in self._found if each.what in NOT_APPLIED]

    def problems(self) -> list[Problem]:
        """Return what status shows: the first of each kind, and how many more there are."""
        problems = []
        for what in Kind:
            found = [each for each in self._found if each.what is what]
            if not found:
                continue
            places = ", ".join(_places(each) for each in found[:SHOWN_MAX])
            more = " and more places" if len(found) > SHOWN_MAX or self.more else ""
            detail = f" ({found[0].detail})" if found[0].detail else ""
            problems.append(
                Problem(
                    f"ledger_{what.value}",
                    f"ledger of {self.node}, sequence {places}{more}: {_SENTENCES[what]}{detail}",
                    _HINTS.get(what, _INTRUDER),
                )
            )
        return problems

    def _unknown(self, what: Kind, first: int, last: int) -> list[tuple[int, int]]:
        """Return the parts of a range of which this is not known yet."""
        parts = []
        for each in self._found:
            if each.what is not what or each.last < first or each.first > last:
                continue
            if each.first > first:
                parts.append((first, each.first - 1))
            first = each.last + 1
        if first <= last:
            parts.append((first, last))
        return parts

    def _put(self, new: Finding) -> bool:
        for number, each in enumerate(self._found):
            if each.what is not new.what or each.detail != new.detail:
                continue
            if each.last + 1 == new.first:
                self._found[number] = msgspec.structs.replace(each, last=new.last)
                return True
            if new.last + 1 == each.first:
                self._found[number] = msgspec.structs.replace(each, first=new.first)
                return True
        if len(self._found) >= FINDINGS_MAX:
            changed = not self.more
            self.more = True
            return changed
        self._found.append(new)
        self._found.sort(key=_place)
        return True


def _place(finding: Finding) -> tuple[int, str]:
    return finding.first, finding.what


def _places(finding: Finding) -> str:
    if finding.first == finding.last:
        return str(finding.first)
    return f"{finding.first} to {finding.last}"
