"""The Storage service (PS3.4 annex B): C-STORE, from the wire into the archive.

Decides nothing about an instance: the archive does, and its errors become statuses. Invariants:
- Success is sent only after the archive has returned.
- A large instance is never held as a whole; what fails in its middle is read to its end before
  the failure is answered.
"""

import hashlib
from collections.abc import Iterable
from typing import Protocol

from appliance.archive.storing import InstanceStore
from appliance.dicom import status, uid
from appliance.dimse.association import Association
from appliance.dimse.commands import (
    AFFECTED_SOP_CLASS_UID,
    AFFECTED_SOP_INSTANCE_UID,
    C_STORE_RQ,
    Command,
    encode_store_success,
)
from appliance.dimse.service import Service, where
from appliance.foundation import log
from appliance.foundation.errors import AzekuraError, DatasetMismatch

STORAGE_LEVEL_2_FULL = b"\x02\0\0\0\0\0"
"""PS3.4 B.3.1: all attributes are kept, no digital signature is touched, nothing is coerced."""

_NEEDED = {AFFECTED_SOP_CLASS_UID, AFFECTED_SOP_INSTANCE_UID}

_log = log.get("dimse")


class StoreGate(Protocol):
    """Whether studies are taken now."""

    @property
    def is_open(self) -> bool:
        """Whether they are."""

    def require(self) -> None:
        """Raise NotAccepting when they are not."""


class ProcessingFailed(AzekuraError):
    """The archive met something that it does not foresee; the instance is refused."""


class StorageHandler:
    """Answers C-STORE. Shared by all associations; holds nothing that changes."""

    def __init__(self, archive: InstanceStore, default_issuer: str, gate: StoreGate | None) -> None:
        self._archive = archive
        self._gate = gate
        self._default_issuer = default_issuer

    def __call__(self, association: Association, command: Command) -> None:
        """Keep the instance that follows and answer."""
        if not command.has_dataset or not _NEEDED.issubset(command.raw):
            raise DatasetMismatch("store", "", "a C-STORE-RQ without its dataset or its UIDs")
        if self._gate is not None:
            self._gate.require()  # what was begun before the gate closed is finished
        try:
            self._keep(association, command)
        except AzekuraError:
            raise
        except Exception as error:  # one odd instance must not end the study's association
            _log.error("store_failed", error=where(error))
            raise ProcessingFailed("store") from error
        association.counters.received += 1
        association.send_response(command.context_id, encode_store_success(command))

    def _keep(self, association: Association, command: Command) -> None:
        limits = association.limits
        digest = hashlib.sha256()
        view, complete = association.read_dataset_part(limits.large_instance_bytes, digest)
        sender = association.sender(self._default_issuer)
        transfer_syntax = association.contexts[command.context_id].transfer_syntax
        sop_class_uid = command.sop_class_uid
        sop_instance_uid = command.sop_instance_uid
        if complete:
            self._archive.store(
                sender,
                sop_class_uid,
                sop_instance_uid,
                transfer_syntax,
                view,
                digest.digest(),
            )
            return
        stream = self._archive.open_stream(sender, sop_class_uid, sop_instance_uid, transfer_syntax)
        try:
            stream.write(view)
            del view  # the large buffer goes back before the parts come
            for part in association.read_dataset_parts(limits.stream_part_bytes):
                stream.write(part)
        except BaseException:
            stream.abort()
            raise
        stream.finish()


def storage_service(
    archive: InstanceStore,
    *,
    default_issuer: str = "",
    extra_sop_classes: Iterable[str] = (),
    gate: StoreGate | None = None,
) -> Service:
    """Return the service that answers C-STORE for every storage class, and for extra ones.

    While `gate` is closed no association may store, and C-STORE on one from before is refused.
    """
    return Service(
        permission="store",
        abstract_syntaxes=uid.stored_sop_classes(extra_sop_classes),
        transfer_syntaxes=uid.ACCEPTED_TRANSFER_SYNTAXES,
        command_fields=frozenset({C_STORE_RQ}),
        handle=StorageHandler(archive, default_issuer, gate),
        failure_status=status.store_status,
        scp_permission="get",
        extended_answer=STORAGE_LEVEL_2_FULL,
        is_open=(lambda: gate.is_open) if gate is not None else None,
    )
