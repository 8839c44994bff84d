"""STOW-RS (PS3.18 section 10.5): instances from a multipart body into the archive.

Translates; the archive stores, by the rules of C-STORE. Invariants:
- An instance is answered as stored only after the archive has returned: it is durable then.
- A large instance is never held as a whole; one that fails does not stop those behind it.
"""

import hashlib
from collections.abc import Collection, Iterator
from email.message import Message
from typing import Any, Protocol

import msgspec
from aiohttp import web

from appliance.archive.sender import Sender
from appliance.archive.storing import InstanceStore
from appliance.dicom import status
from appliance.dicom.json_values import json_dataset
from appliance.dicom.part10 import FileMeta, read_part10
from appliance.dicom.scan import Identity, scan_identity
from appliance.dicom.uid import ACCEPTED_TRANSFER_SYNTAXES
from appliance.foundation.errors import (
    AzekuraError,
    DatasetMismatch,
    OutOfSpace,
    Refused,
    StorageFailed,
)
from appliance.web.accept import DICOM_JSON, accepts_json
from appliance.web.access import CALLER, STORE
from appliance.web.body import Body
from appliance.web.bridge import Workers
from appliance.web.limits import STORE_MAX_BYTES
from appliance.web.multipart_reading import PartReader
from appliance.web.paths import DICOM_WEB, base_url, uids_of
from appliance.web.problem import HttpError, NotAcceptable, TooLarge, UnsupportedMediaType
from appliance.web.routes import Route
from appliance.web.search_parameters import STUDY_UID
from appliance.web.selecting import STUDY_PATH

LARGE_INSTANCE_BYTES = 8 * 2**20
DICOM = "application/dicom"
SYNTAX_NOT_SUPPORTED = 0xC122
_ACCEPTED = frozenset(ACCEPTED_TRANSFER_SYNTAXES)
_FAILED, _STORED = "00081198", "00081199"
_REASON, _CLASS, _INSTANCE, _URL = "00081197", "00081150", "00081155", "00081190"


class SyntaxNotSupported(Refused):
    """The transfer syntax is not one that is kept."""


class ClassNotSupported(Refused):
    """The SOP class is not one of storage."""


class Gate(Protocol):
    """Whether the node takes studies now."""

    def require(self) -> None:
        """Raise NotAccepting when it does not."""


class StoreService:
    """Answers stores. Holds nothing that changes."""

    def __init__(
        self,
        store: InstanceStore,
        gate: Gate,
        sop_classes: Collection[str],
        ae_title: str,
        workers: Workers,
    ) -> None:
        """`sop_classes`: those that C-STORE takes."""
        self._store = store
        self._gate = gate
        self._sop_classes = sop_classes
        self._ae_title = ae_title
        self._workers = workers

    def routes(self) -> list[Route]:
        """Return the one route."""
        paths = (f"{DICOM_WEB}/studies", STUDY_PATH)
        return [Route("store instances", "POST", paths, STORE, self.stow)]

    async def stow(self, request: web.Request) -> web.StreamResponse:
        """Store every part, and answer for each."""
        boundary = _boundary(request)
        if not accepts_json(request):
            raise NotAcceptable("store", cause=f"answers are {DICOM_JSON} only")
        self._gate.require()
        study = uids_of(request).get(STUDY_UID, "")
        base = base_url(request)
        sender = request[CALLER].sender(self._ae_title)
        body = Body()
        report = _Report(base, study)

        def work() -> None:
            parts = PartReader(body.read, boundary)
            for headers in parts:
                self._one(parts, headers, sender, study, report)

        await self._workers.transfer(work, body.feed(request))
        if report.failure is not None and not report.stored and report.all_short_of_space:
            raise report.failure
        return web.Response(
            status=report.http_status,
            body=msgspec.json.encode(report.document()),
            content_type=DICOM_JSON,
        )

    def _one(
        self,
        parts: PartReader,
        headers: dict[str, str],
        sender: Sender,
        study: str,
        report: "_Report",
    ) -> None:
        meta = FileMeta("", "", "")
        try:
            kind = headers.get("content-type", DICOM).partition(";")[0].strip().lower()
            if kind != DICOM or headers.get("content-encoding", "identity") != "identity":
                raise UnsupportedMediaType("store", cause=f"a part is {DICOM}, not compressed")
            content = parts.content()
            meta, front = read_part10(content)
            if meta.transfer_syntax_uid not in _ACCEPTED:
                raise SyntaxNotSupported("store", meta.transfer_syntax_uid)
            if meta.sop_class_uid not in self._sop_classes:
                raise ClassNotSupported("store", meta.sop_class_uid)
            identity = self._keep(meta, front, content, sender, study)
        except (StorageFailed, HttpError) as error:
            if isinstance(error, UnsupportedMediaType):
                report.add_failure(meta, error)
                return
            raise
        except AzekuraError as error:
            report.add_failure(meta, error)
        else:
            report.add_stored(meta, identity)

    def _keep(
        self, meta: FileMeta, front: bytes, content: Iterator[bytes], sender: Sender, study: str
    ) -> Identity:
        """Store one instance, whose dataset begins with `front`; return where it belongs."""
        held = bytearray(front)
        digest = hashlib.sha256(front)
        for piece in content:
            held += piece
            digest.update(piece)
            if len(held) > LARGE_INSTANCE_BYTES:
                break
        else:
            identity = _identity(held, meta, study)
            self._store.store(
                sender, meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid,
                memoryview(held), digest.digest(),
            )  # fmt: skip
            return identity
        identity = _identity(held, meta, study)
        stream = self._store.open_stream(
            sender, meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid
        )
        try:
            stream.write(memoryview(held))
            del held
            for piece in content:
                stream.write(memoryview(piece))
        except BaseException:
            stream.abort()
            raise
        stream.finish()
        return identity


def _identity(held: bytearray, meta: FileMeta, study: str) -> Identity:
    """Return where a dataset belongs; DatasetMismatch when that is not the study of the path."""
    identity = scan_identity(held, meta.transfer_syntax_uid)
    if study and identity.study_instance_uid != study:
        raise DatasetMismatch("store", "", "it is of another study than the path says")
    return identity


class _Report:
    """What became of each instance."""

    def __init__(self, base: str, study: str) -> None:
        self._base = base
        self._study = study
        self.stored: list[dict[str, Any]] = []
        self._failed: list[dict[str, Any]] = []
        self.failure: AzekuraError | None = None
        self.all_short_of_space = True

    def add_stored(self, meta: FileMeta, identity: Identity) -> None:
        """Note an instance that is durable."""
        url = (
            f"{self._base}/studies/{identity.study_instance_uid}/series/"
            f"{identity.series_instance_uid}/instances/{meta.sop_instance_uid}"
        )
        self.stored.append(_item(meta) | {_URL: {"vr": "UR", "Value": [url]}})

    def add_failure(self, meta: FileMeta, error: AzekuraError) -> None:
        """Note an instance that was not stored, and why, by the codes of C-STORE."""
        if isinstance(error, SyntaxNotSupported):
            reason = SYNTAX_NOT_SUPPORTED
        elif isinstance(error, ClassNotSupported):
            reason = status.SOP_CLASS_NOT_SUPPORTED
        elif isinstance(error, UnsupportedMediaType):
            reason = status.CANNOT_UNDERSTAND
        else:
            reason = status.store_status(error)
        self.failure = self.failure or error
        self.all_short_of_space = self.all_short_of_space and isinstance(error, OutOfSpace)
        self._failed.append(_item(meta) | {_REASON: {"vr": "US", "Value": [reason]}})

    @property
    def http_status(self) -> int:
        """200 when all are stored, 202 when some are, 409 when none is."""
        if not self._failed:
            return 200
        return 202 if self.stored else 409

    def document(self) -> dict[str, Any]:
        """Return the answer (PS3.18 section 10.5.3)."""
        found: dict[str, Any] = {}
        if self._study:
            found |= json_dataset({0x00081190: f"{self._base}/studies/{self._study}"})
        if self._failed:
            found[_FAILED] = {"vr": "SQ", "Value": self._failed}
        if self.stored:
            found[_STORED] = {"vr": "SQ", "Value": self.stored}
        return found


def _item(meta: FileMeta) -> dict[str, Any]:
    return {
        key: {"vr": "UI", "Value": [uid]} if uid else {"vr": "UI"}
        for key, uid in ((_CLASS, meta.sop_class_uid), (_INSTANCE, meta.sop_instance_uid))
    }


def _boundary(request: web.Request) -> str:
    """Return the boundary of a body that is taken; UnsupportedMediaType, TooLarge."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("store", cause="a compressed body is not taken")
    if (request.content_length or 0) > STORE_MAX_BYTES:
        raise TooLarge("store", cause=f"a request has {STORE_MAX_BYTES} bytes at most")
    message = Message()
    message["Content-Type"] = request.headers.get("Content-Type", "")
    inner = str(message.get_param("type", DICOM)).lower()
    boundary = message.get_param("boundary", "")
    if message.get_content_type() != "multipart/related" or inner != DICOM or not boundary:
        raise UnsupportedMediaType(
            "store", cause=f'a body is multipart/related with type="{DICOM}" and a boundary'
        )
    return str(boundary)
