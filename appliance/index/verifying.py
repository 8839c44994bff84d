"""Does the index agree with itself? Every checksum, every reference, every count.

It reads one table after the other in the transaction it is given; a whole index of a million
studies takes minutes, so it is for tests, rebuilds and a doctor who is asked to look deep.
"""

from collections import Counter

from appliance.index.contexts import patient_key
from appliance.index.keys import unpack_uid
from appliance.index.pack_state import listed_under
from appliance.index.reading import Reader
from appliance.index.schema import (
    COUNTERS_KEY,
    Counters,
    PatientRow,
    StudyRow,
    Table,
    decode_copies,
    decode_counters,
    decode_pack,
    decode_patient,
    decode_series,
    decode_study,
)
from appliance.index.secondary import secondary_keys
from appliance.index.view import View

FINDINGS_MAX = 100


def verify(view: View) -> list[str]:
    """Return what is wrong, in words without identifiers of patients; Damaged on a bad checksum."""
    reader = view.reader
    findings: list[str] = []
    for check in (_instances, _series, _studies, _secondary, _patients, _packs):
        findings.extend(check(reader))
        if len(findings) >= FINDINGS_MAX:
            break
    return findings[:FINDINGS_MAX]


def _instances(reader: Reader) -> list[str]:
    """Instances against the SOP table, contexts and packs."""
    findings = []
    instances = 0
    for key, body in reader.scan(Table.INSTANCE, b""):
        instances += 1
        study, series, sop = _parts(key)
        if reader.get(Table.SOP, sop + study) != series:
            findings.append("an instance is not where its UID says")
        copies = decode_copies(body)
        if reader.shared(study, copies[-1].context).context.series != series:
            findings.append("an instance is not under the series of its newest copy")
        for copy in copies:
            reader.shared(study, copy.context)
            pack = reader.pack(copy.pack)
            if pack is None:
                findings.append("a copy lies in a pack that is not known")
            elif study not in pack.studies:
                findings.append("a copy lies in a pack that does not name its study")
    if reader.entries(Table.SOP) != instances:
        findings.append("the SOP table has another number of instances")
    return findings


def _series(reader: Reader) -> list[str]:
    """Series against their instances."""
    findings = []
    counts: Counter[bytes] = Counter()
    hidden: tuple[bytes, set[bytes]] = (b"", set())
    for key, _ in reader.scan(Table.INSTANCE, b""):
        study, series, sop = _parts(key)
        if hidden[0] != study:
            hidden = (study, reader.hidden_in(study))
        counts[study + series] += sop not in hidden[1]
    for key, body in reader.scan(Table.SERIES, b""):
        at = unpack_uid(key)[1]
        if counts.pop(key, 0) != decode_series(body).instance_count:
            findings.append("a series has another number of instances than it says")
        if reader.get(Table.SERIES_STUDY, key[at:] + key[:at]) is None:
            findings.append("a series is not found by its UID")
    if any(counts.values()):
        findings.append("instances are served of a series that is missing")
    if reader.entries(Table.SERIES_STUDY) != reader.entries(Table.SERIES):
        findings.append("the table of series UIDs has another number of series")
    return findings


def _parts(key: bytes) -> tuple[bytes, bytes, bytes]:
    at_series = unpack_uid(key)[1]
    at_sop = unpack_uid(key, at_series)[1]
    return key[:at_series], key[at_series:at_sop], key[at_sop:]


def _studies(reader: Reader) -> list[str]:
    """Studies against their series, and the totals against the studies."""
    findings = []
    totals = Counters()
    for study, body in reader.scan(Table.STUDY, b""):
        row = decode_study(body)
        series = [decode_series(part) for _, part in reader.scan(Table.SERIES, study)]
        modalities = Counter(each.modality for each in series)
        packs: Counter[bytes] = Counter()
        for each in series:
            packs.update(each.packs)
        newest = max((each.newest for each in series), key=lambda n: n.order, default=None)
        if (len(series), sum(each.instance_count for each in series), newest) != (
            row.series_count,
            row.instance_count,
            row.newest,
        ):
            findings.append("a study's counts or newest instance are not those of its series")
        if modalities != row.modalities or packs != row.packs:
            findings.append("a study's modalities or packs are not those of its series")
        if sum(part.served_count for part in row.patients) != row.instance_count:
            findings.append("a study's patients do not account for its instances")
        totals.studies += row.newest is not None
        totals.series += row.series_count
        totals.instances += row.instance_count
    body_of_totals = reader.get(Table.META, COUNTERS_KEY)
    said = Counters() if body_of_totals is None else decode_counters(body_of_totals)
    if (said.studies, said.series, said.instances) != (
        totals.studies,
        totals.series,
        totals.instances,
    ):
        findings.append("the totals are not those of the studies")
    return findings


def _secondary(reader: Reader) -> list[str]:
    """Secondary tables against the studies."""
    findings = []
    entries: Counter[Table] = Counter()
    for study, body in reader.scan(Table.STUDY, b""):
        row = decode_study(body)
        if row.newest is None:
            continue
        context = reader.shared(study, row.newest.context).context
        if context.study_attributes != row.attributes:
            findings.append("a study's attributes are not those of its newest instance")
        for table, key in secondary_keys(study, row.attributes):
            entries[table] += 1
            if reader.get(table, key) is None:
                findings.append(f"a study is missing in {table.name.lower()}")
    tables = (Table.NAME, Table.DATE, Table.IDENTIFIER)
    return findings + [
        f"{table.name.lower()} has entries that no study has"
        for table in tables
        if reader.entries(table) != entries[table]
    ]


def _patients(reader: Reader) -> list[str]:
    """Patients against their studies."""
    findings = []
    patients = studies_of_patients = 0
    for patient, body in reader.scan(Table.PATIENT, b""):
        if not body:
            studies_of_patients += 1
            continue
        patients += 1
        said = decode_patient(body)
        studies = [
            (key[len(patient) :], found)
            for key, _ in reader.scan(Table.PATIENT, patient)
            if len(key) > len(patient) and (found := reader.study(key[len(patient) :])) is not None
        ]
        if _patient_row(studies) != said:
            findings.append("a patient's counts or newest study are not those of the studies")
    seen = {
        study: patient_key(study, row.attributes)
        for study, body in reader.scan(Table.STUDY, b"")
        if (row := decode_study(body)).newest is not None
    }
    if len(set(seen.values())) != patients or len(seen) != studies_of_patients:
        findings.append("there are other patients than the studies have")
    return findings


def _patient_row(studies: list[tuple[bytes, StudyRow]]) -> PatientRow | None:
    served = [(row.newest.order, study, row) for study, row in studies if row.newest is not None]
    if not served:
        return None
    order, newest_study, _ = max(served, key=lambda each: each[0])
    return PatientRow(
        len(served),
        sum(row.series_count for _, _, row in served),
        sum(row.instance_count for _, _, row in served),
        order,
        newest_study,
    )


def _packs(reader: Reader) -> list[str]:
    """Packs against the lists of pending and cached ones, and against their members."""
    findings = []
    members: Counter[bytes] = Counter()
    for _, body in reader.scan(Table.INSTANCE, b""):
        members.update(copy.pack for copy in decode_copies(body))
    listed: Counter[Table] = Counter()
    studies = 0
    for reference, body in reader.scan(Table.PACK, b""):
        pack = decode_pack(body)
        if members[reference] != pack.member_count:
            findings.append("a pack has another number of members than it says")
        studies += len(pack.studies)
        if any(reader.get(Table.STUDY_PACK, each + reference) is None for each in pack.studies):
            findings.append("a study does not name one of its packs")
        where = listed_under(reference, pack)
        if where is not None:
            listed[where[0]] += 1
            if reader.get(*where) is None:
                findings.append(f"a pack is missing in {where[0].name.lower()}")
    if reader.entries(Table.STUDY_PACK) != studies:
        findings.append("the table of the studies' packs has another number of them")
    return findings + [
        f"{table.name.lower()} has entries that no pack has"
        for table in (Table.PENDING, Table.CACHED, Table.ERASED)
        if reader.entries(table) != listed[table]
    ]
