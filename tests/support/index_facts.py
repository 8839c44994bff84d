"""Facts for index tests, and a model of the index that counts everything anew from their set."""

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from appliance.dicom.attributes import BY_KEYWORD
from appliance.index.facts import CloudFacts, InstanceFacts, PackFacts, RecordId

PACK_NUMBERS_MAX = 500


def pack_id(number: int) -> str:
    """Return the id of a pack by its number, below PACK_NUMBERS_MAX; they sort by it."""
    return f"01j9zk3ndektsv4rrffq69g{PACK_NUMBERS_MAX + number:03d}"


PACK_IDS = [pack_id(number) for number in range(20)]
EXPLICIT = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.70"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"


def tags(**values: Any) -> dict[int, Any]:
    """Return attributes by tag from keywords."""
    found = {BY_KEYWORD[name].tag: value for name, value in values.items()}
    return dict(sorted(found.items()))


def instance(
    study: str = "1.2.1",
    series: str = "1.2.1.1",
    sop: str = "1.2.1.1.1",
    *,
    offset: int = 1024,
    at: int = 1_000,
    content: str = "",
    syntax: str = EXPLICIT,
    sop_class: str = CT,
    calling: str = "CT1",
    **values: Any,
) -> InstanceFacts:
    """Return an instance; `content` stands for its bytes, and goes into its hash."""
    values = {
        "PatientID": "P1",
        "PatientName": "Yamada^Tarou=山田^太郎=ヤマダ^タロウ",
        "StudyDate": "20240102",
        "StudyTime": "101112",
        "AccessionNumber": "A1",
        "Modality": "CT",
        "InstanceNumber": "1",
    } | values
    digest = sha256(repr((study, series, sop, syntax, content, values)).encode()).digest()
    return InstanceFacts(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=sop,
        sop_class_uid=sop_class,
        transfer_syntax_uid=syntax,
        offset=offset,
        length=500,
        sha256=digest,
        received_at_us=at,
        calling_ae=calling,
        called_ae="AZEKURA",
        peer_address="192.0.2.1",
        tls_subject="",
        character_set="ISO_IR 192",
        attributes=tags(**values),
    )


def pack(
    number: int,
    instances: list[InstanceFacts],
    *,
    node: str = "site-a",
    local: bool = False,
    size: int = 10_000,
    cloud: CloudFacts | None = None,
) -> PackFacts:
    """Return a pack by its number."""
    return PackFacts(pack_id(number), node, instances, local, size, cloud)


def cloud_copy(number: int, *, sequence: int = 1, at: int = 5_000, locked: int = 0) -> CloudFacts:
    """Return the verified copy of a pack."""
    return CloudFacts(
        key=f"packs/2024/01/02/{pack_id(number)}.tar.age",
        version_id="v1",
        size=11_000,
        checksum="c",
        locked_until_us=locked,
        age_header=b"age-encryption.org/v1",
        file_key=b"k" * 16,
        lock_mode="compliance" if locked else "",
        node="site-a",
        sequence=sequence,
        verified_at_us=at,
    )


@dataclass
class Model:
    """The set of facts; every answer is counted anew from it."""

    members: dict[tuple[str, int], tuple[str, InstanceFacts]] = field(default_factory=dict)
    visibility: dict[tuple[str, str], set[tuple[RecordId, bool]]] = field(default_factory=dict)
    clouds: dict[str, CloudFacts] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)
    retained: dict[str, int] = field(default_factory=dict)
    holds: dict[str, set[tuple[int, str, bool]]] = field(default_factory=dict)
    local: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)

    def add(self, facts: PackFacts) -> None:
        """Take a pack in."""
        for member in facts.instances:
            self.members[facts.pack_id, member.offset] = (facts.node, member)
        if facts.local:
            self.local.add(facts.pack_id)
        if facts.cloud is not None:
            self.clouds[facts.pack_id] = facts.cloud
        self.sizes[facts.pack_id] = max(facts.size, self.sizes.get(facts.pack_id, 0))

    def gone(self, pack_id: str) -> bool:
        """Return whether a pack is no more: said to be erased, and not pending."""
        return pack_id in self.erased and pack_id in self.clouds

    def kept(self) -> dict[tuple[str, int], tuple[str, InstanceFacts]]:
        """Return the members of the packs that are not erased."""
        return {key: member for key, member in self.members.items() if not self.gone(key[0])}

    def packs_of(self, study: str) -> set[str]:
        """Return the packs in which a study lies."""
        return {
            pack_id
            for (pack_id, _), (_, facts) in self.kept().items()
            if facts.study_instance_uid == study
        }

    def hidden(self, study: str, sop: str) -> bool:
        """Return whether an instance is not served."""
        records = self.visibility.get((study, sop), set())
        return bool(records) and max(records)[1]

    def served(self) -> list[tuple[tuple[Any, ...], InstanceFacts]]:
        """Return order and facts of the newest copy of every instance that is not hidden."""
        newest: dict[tuple[str, str], tuple[tuple[Any, ...], InstanceFacts]] = {}
        for (pack_id, offset), (node, facts) in self.kept().items():
            order = (facts.received_at_us, node, pack_id, offset)
            name = (facts.study_instance_uid, facts.sop_instance_uid)
            if name not in newest or order > newest[name][0]:
                newest[name] = (order, facts)
        return sorted(
            ((order, facts) for name, (order, facts) in newest.items() if not self.hidden(*name)),
            key=lambda each: each[0],
        )

    def studies(self) -> dict[str, dict[str, Any]]:
        """Return what each study of which something is served must look like."""
        found: dict[str, dict[str, Any]] = {}
        for order, facts in self.served():
            study = found.setdefault(
                facts.study_instance_uid, {"series": {}, "instances": 0, "sop_classes": set()}
            )
            study["instances"] += 1
            study["sop_classes"].add(facts.sop_class_uid)
            study["attributes"] = facts.attributes
            study["order"] = order
            series = study["series"].setdefault(facts.series_instance_uid, {"instances": 0})
            series["instances"] += 1
            series["attributes"] = facts.attributes
        for study in found.values():
            study["modalities"] = {
                series["attributes"][BY_KEYWORD["Modality"].tag]
                for series in study["series"].values()
            }
        return found

    def patients(self) -> dict[tuple[str, str], Counter[str]]:
        """Return studies, series and instances of every patient."""
        found: dict[tuple[str, str], Counter[str]] = {}
        for uid, study in self.studies().items():
            patient_id = study["attributes"][BY_KEYWORD["PatientID"].tag]
            counts = found.setdefault((patient_id, "" if patient_id else uid), Counter())
            counts["studies"] += 1
            counts["series"] += len(study["series"])
            counts["instances"] += study["instances"]
        return found
