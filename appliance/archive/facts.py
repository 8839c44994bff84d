"""Facts about instances: made from a pack's members, put into ledger records, taken out again.

The one place that knows both the member's shape and the index's: what the index learns from a local
pack is the same as what it learns from the ledger entry that names the pack.
"""

import msgspec

from appliance.archive.records import Context, ListedInstance, Origin, PackRecord, Value
from appliance.dicom.attributes import ATTRIBUTES, Level
from appliance.dicom.scan import scan_attributes, scan_identity
from appliance.foundation.errors import DatasetNotUnderstood
from appliance.index.facts import CloudFacts, InstanceFacts, PackFacts
from appliance.packs.member import Member

_ISSUER_OF_PATIENT_ID = 0x00100021
INSTANCE_TAGS = frozenset(a.tag for a in ATTRIBUTES if a.level is Level.INSTANCE)


def instance_facts(member: Member, dataset: memoryview) -> InstanceFacts:
    """Return what the index keeps of one member; DatasetNotUnderstood when nothing parses."""
    provenance = member.provenance
    identity = scan_identity(dataset, member.transfer_syntax_uid)
    try:
        header = scan_attributes(
            dataset, member.transfer_syntax_uid, default_character_set=provenance.character_set
        )
        attributes, character_set = header.attributes, header.character_set
    except DatasetNotUnderstood:
        attributes, character_set = {}, provenance.character_set
    if provenance.issuer and not attributes.get(_ISSUER_OF_PATIENT_ID):
        attributes[_ISSUER_OF_PATIENT_ID] = provenance.issuer
    return InstanceFacts(
        study_instance_uid=identity.study_instance_uid,
        series_instance_uid=identity.series_instance_uid,
        sop_instance_uid=identity.sop_instance_uid,
        sop_class_uid=identity.sop_class_uid,
        transfer_syntax_uid=member.transfer_syntax_uid,
        offset=member.dataset_offset,
        length=member.length,
        sha256=member.sha256,
        received_at_us=provenance.received_at_us,
        calling_ae=provenance.calling_ae,
        called_ae=provenance.called_ae,
        peer_address=provenance.peer_address,
        tls_subject=provenance.tls_subject,
        character_set=character_set,
        attributes=attributes,
    )


def list_instances(
    instances: list[InstanceFacts],
) -> tuple[list[Origin], list[Context], list[ListedInstance]]:
    """Return the parts of a pack record that list instances, what repeats kept once."""
    origins: dict[Origin, int] = {}
    contexts: dict[bytes, int] = {}
    context_list: list[Context] = []
    listed = []
    for facts in instances:
        origin = Origin(
            facts.calling_ae,
            facts.called_ae,
            facts.peer_address,
            facts.tls_subject,
            facts.character_set,
            facts.transfer_syntax_uid,
            facts.sop_class_uid,
        )
        shared, own = _split_attributes(facts)
        context = Context(facts.study_instance_uid, facts.series_instance_uid, shared)
        encoded = msgspec.msgpack.encode(context)
        number = contexts.get(encoded)
        if number is None:
            number = contexts[encoded] = len(context_list)
            context_list.append(context)
        listed.append(
            ListedInstance(
                facts.sop_instance_uid,
                origins.setdefault(origin, len(origins)),
                number,
                facts.offset,
                facts.length,
                facts.sha256,
                facts.received_at_us,
                own,
            )
        )
    return list(origins), context_list, listed


def _split_attributes(facts: InstanceFacts) -> tuple[dict[int, Value], dict[int, Value]]:
    shared: dict[int, Value] = {}
    own: dict[int, Value] = {}
    for tag, value in facts.attributes.items():
        (own if tag in INSTANCE_TAGS else shared)[tag] = value
    return shared, own


def pack_facts(record: PackRecord, node: str, sequence: int) -> PackFacts:
    """Return what the index learns from the `pack` record of a ledger entry."""
    instances = []
    for listed in record.instances:
        origin = record.origins[listed.origin]
        context = record.contexts[listed.context]
        instances.append(
            InstanceFacts(
                study_instance_uid=context.study_instance_uid,
                series_instance_uid=context.series_instance_uid,
                sop_instance_uid=listed.sop_instance_uid,
                sop_class_uid=origin.sop_class_uid,
                transfer_syntax_uid=origin.transfer_syntax_uid,
                offset=listed.offset,
                length=listed.length,
                sha256=listed.sha256,
                received_at_us=listed.received_at_us,
                calling_ae=origin.calling_ae,
                called_ae=origin.called_ae,
                peer_address=origin.peer_address,
                tls_subject=origin.tls_subject,
                character_set=origin.character_set,
                attributes={**context.attributes, **listed.attributes},
            )
        )
    return PackFacts(
        pack_id=record.pack_id,
        node=node,
        instances=instances,
        local=False,
        size=record.plain_size_bytes,
        cloud=CloudFacts(
            key=record.key,
            version_id=record.version_id,
            size=record.size_bytes,
            checksum=record.checksum,
            lock_mode=record.lock_mode,
            locked_until_us=record.locked_until_us,
            age_header=record.age_header,
            file_key=record.file_key,
            node=node,
            sequence=sequence,
            verified_at_us=record.verified_at_us,
            headers_offset=record.headers_offset,
            headers_length=record.headers_length,
        ),
    )
