"""A study under change within one write transaction: what is served is added and taken away.

Invariants:
- Counts change only by `add` and `remove` of one instance's contribution, so they equal a recount.
- `newest` goes up by `add`; when the newest itself is removed the state is stale until it is
  looked up again from the records below.
"""

from appliance.index.contexts import Shared
from appliance.index.schema import Context, Newest, Order, PatientPart, SeriesRow, StudyRow


class Contribution:
    """What one served instance adds to its series and study."""

    __slots__ = ("order", "series", "shared")

    def __init__(self, series: bytes, order: Order, shared: Shared) -> None:
        self.series = series
        self.order = order
        self.shared = shared

    def newest(self) -> Newest:
        """Return the record of this instance as the newest of its series or study."""
        return Newest(self.order, self.shared.key)


def count(counts: dict[bytes, int] | dict[str, int], name: bytes | str, by: int) -> None:
    """Change a count, dropping it at zero."""
    total = counts.get(name, 0) + by  # type: ignore[arg-type]
    if total:
        counts[name] = total  # type: ignore[index]
    else:
        del counts[name]  # type: ignore[arg-type]


class SeriesState:
    """A series under change; `was_modality` is None when nothing of it was served before."""

    __slots__ = (
        "instance_count",
        "modality",
        "newest",
        "packs",
        "sop_classes",
        "stale",
        "was_modality",
    )

    def __init__(self, row: SeriesRow | None) -> None:
        self.newest: Newest | None = None
        self.instance_count = 0
        self.modality = ""
        self.sop_classes: dict[str, int] = {}
        self.packs: dict[bytes, int] = {}
        self.was_modality: str | None = None
        self.stale = False
        if row is not None:
            self.newest = row.newest
            self.instance_count = row.instance_count
            self.modality = self.was_modality = row.modality
            self.sop_classes = row.sop_classes
            self.packs = row.packs

    def row(self) -> SeriesRow | None:
        """Return the record to store, None when nothing is served."""
        if self.newest is None or self.instance_count == 0:
            return None
        return SeriesRow(
            self.newest,
            self.instance_count,
            self.modality,
            dict(sorted(self.sop_classes.items())),
            dict(sorted(self.packs.items())),
        )


class StudyState:
    """A study under change, with what of it was in the index before."""

    __slots__ = (
        "before",
        "has_visibility",
        "instance_count",
        "is_new",
        "modalities",
        "newest",
        "packs",
        "patients",
        "series",
        "series_count",
        "sop_classes",
        "stale",
        "study",
    )

    def __init__(self, study: bytes, row: StudyRow | None, *, has_visibility: bool) -> None:
        self.study = study
        self.before = row
        self.is_new = row is None
        self.has_visibility = has_visibility
        self.series: dict[bytes, SeriesState] = {}
        self.newest = row.newest if row else None
        self.series_count = row.series_count if row else 0
        self.instance_count = row.instance_count if row else 0
        self.modalities = dict(row.modalities) if row else {}
        self.sop_classes = dict(row.sop_classes) if row else {}
        self.packs = dict(row.packs) if row else {}
        self.patients = {part.patient: part for part in row.patients} if row else {}
        self.stale = False

    def saw(self, patient: bytes, received_at_us: int) -> None:
        """Note that a copy came under this patient key."""
        part = self.patients.get(patient)
        if part is None:
            self.patients[patient] = PatientPart(patient, 0, received_at_us, received_at_us)
        elif received_at_us > part.last_received_us:
            part.last_received_us = received_at_us
        elif received_at_us < part.first_received_us:
            part.first_received_us = received_at_us

    def add(self, what: Contribution, series: SeriesState) -> None:
        """Count an instance that is served from now on."""
        context = what.shared.context
        pack = what.order.pack
        sop_class = context.sop_class_uid
        series.instance_count += 1
        series.sop_classes[sop_class] = series.sop_classes.get(sop_class, 0) + 1
        series.packs[pack] = series.packs.get(pack, 0) + 1
        self.instance_count += 1
        self.sop_classes[sop_class] = self.sop_classes.get(sop_class, 0) + 1
        self.packs[pack] = self.packs.get(pack, 0) + 1
        self.patients[what.shared.patient_of(self.study)].served_count += 1
        if series.newest is None or what.order > series.newest.order:
            series.newest = what.newest()
            series.modality = what.shared.modality
            if self.newest is None or what.order > self.newest.order:
                self.newest = series.newest

    def remove(self, what: Contribution, series: SeriesState) -> None:
        """Count an instance no more."""
        context = what.shared.context
        series.instance_count -= 1
        count(series.sop_classes, context.sop_class_uid, -1)
        count(series.packs, what.order.pack, -1)
        self.instance_count -= 1
        count(self.sop_classes, context.sop_class_uid, -1)
        count(self.packs, what.order.pack, -1)
        self.patients[what.shared.patient_of(self.study)].served_count -= 1
        if series.newest is not None and what.order == series.newest.order:
            series.stale = True
        if self.newest is not None and what.order == self.newest.order:
            self.stale = True

    def settle_series(self, series: SeriesState) -> None:
        """Carry a series' change of modality, or its coming and going, into the study."""
        now = series.modality if series.instance_count else None
        if now == series.was_modality:
            return
        if series.was_modality is not None:
            self.series_count -= 1
            count(self.modalities, series.was_modality, -1)
        if now is not None:
            self.series_count += 1
            count(self.modalities, now, 1)
        series.was_modality = now

    def row(self, newest: Context | None) -> StudyRow:
        """Return the record to store; `newest`: the context of the newest served instance."""
        return StudyRow(
            self.newest,
            self.series_count,
            self.instance_count,
            dict(sorted(self.modalities.items())),
            dict(sorted(self.sop_classes.items())),
            dict(sorted(self.packs.items())),
            [self.patients[key] for key in sorted(self.patients)],
            newest.character_set if newest is not None else "",
            newest.study_attributes if newest is not None else {},
        )
