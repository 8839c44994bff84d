"""WADO-RS metadata and bulk data (PS3.18 sections 10.4.1.1.2 and 10.4.1.1.5).

Translates headers into JSON; the archive decides where they come from. Invariants: metadata refers
to bulk by URLs of this daemon; an answer is cut off rather than ended when an instance is missing.
"""

import contextlib
import hashlib
import re
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web

from appliance.archive.extent import Dataset, part_of
from appliance.archive.headers import header_of
from appliance.archive.retrieval import Opened, Retrievable
from appliance.dicom.json_model import BINARY_WIDTHS, JsonReader, json_vr, swapped
from appliance.dicom.scan import find_element
from appliance.dicom.uid import is_big_endian
from appliance.foundation.errors import AzekuraError, NotFound
from appliance.packs.frames import InstanceHeader
from appliance.web.accept import DICOM_JSON, accepted, accepts_json, covers
from appliance.web.access import RETRIEVE
from appliance.web.bridge import Workers
from appliance.web.limits import PIECE_BYTES
from appliance.web.multipart import MultipartWriter, whole
from appliance.web.paths import base_url
from appliance.web.problem import BadRequest, NotAcceptable
from appliance.web.routes import Route
from appliance.web.selecting import (
    EVERY_PATH,
    INSTANCE_PATH,
    Opener,
    Selector,
    location_of,
    opened_one,
    query_of,
    selected,
)
from appliance.web.sending import send_stream

FORMAT = 1
"""Counted up when the same instances give other metadata: ETags change with it."""

OCTETS = "application/octet-stream"
_PATH = re.compile(r"[0-9A-Fa-f]{8}(?:/[1-9][0-9]{0,5}/[0-9A-Fa-f]{8}){0,32}")


class HeaderReader(Protocol):
    """What metadata needs of the archive."""

    def of(
        self, wanted: Sequence[Retrievable]
    ) -> Generator[tuple[Retrievable, InstanceHeader | AzekuraError], None, None]:
        """Yield each instance's header, or why it can't be had."""


class MetadataService:
    """Answers metadata and bulk data. Holds nothing that changes."""

    def __init__(
        self, selector: Selector, headers: HeaderReader, opener: Opener, workers: Workers
    ) -> None:
        self._selector = selector
        self._headers = headers
        self._opener = opener
        self._workers = workers

    def routes(self) -> list[Route]:
        """Return the routes of every level."""
        return [
            Route(
                "retrieve metadata", "GET", tuple(f"{path}/metadata" for path in EVERY_PATH),
                RETRIEVE, self.metadata,
            ),
            Route(
                "retrieve bulk data", "GET", (f"{INSTANCE_PATH}/bulkdata/{{path:.+}}",), RETRIEVE,
                self.bulk,
            ),
        ]  # fmt: skip

    async def metadata(self, request: web.Request) -> web.StreamResponse:
        """Send the datasets of a study, series or instance in JSON, without their bulk."""
        if not accepts_json(request):
            raise NotAcceptable("retrieve metadata", cause=f"metadata is {DICOM_JSON} only")
        query, base = query_of(request), base_url(request)

        def listed() -> tuple[list[Retrievable], str]:
            wanted = list(selected(self._selector, query))
            return wanted, _etag(wanted, base)

        wanted, etag = await self._workers.call(listed)
        headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
        if etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        stream = self._workers.stream(lambda: self._pieces(wanted, base))
        try:
            first = await anext(stream)
            response = web.StreamResponse(headers={**headers, "Content-Type": DICOM_JSON})
            return await send_stream(request, response, first, stream)
        finally:
            stream.close()

    def _pieces(self, wanted: list[Retrievable], base: str) -> Iterator[bytes]:
        failure: AzekuraError | None = None
        piece = bytearray(b"[")
        separator = b""
        with contextlib.closing(self._headers.of(wanted)) as headers:
            for instance, header in headers:
                if isinstance(header, AzekuraError):
                    failure = failure or header
                    continue
                piece += separator + msgspec.json.encode(metadata_of(instance, header, base))
                separator = b","
                if len(piece) >= PIECE_BYTES:
                    yield bytes(piece)
                    piece.clear()
        if failure is not None:
            raise failure
        yield bytes(piece) + b"]"

    async def bulk(self, request: web.Request) -> web.StreamResponse:
        """Send the value of one element of an instance's dataset."""
        path = _path(request.match_info["path"])
        multipart = _wants_parts(request)
        query, base = query_of(request), base_url(request)
        writer = MultipartWriter(OCTETS)

        def pieces() -> Iterator[bytes]:
            instance, opened = opened_one(self._opener, selected(self._selector, query))
            value = value_of(instance, opened, path)
            if multipart:
                location = f"{location_of(base, instance)}/bulkdata/{path}"
                yield from writer.part(OCTETS, location, b"", value)
                yield writer.end()
            else:
                yield from whole(b"", value)

        stream = self._workers.stream(pieces)
        try:
            first = await anext(stream)
            content_type = writer.content_type if multipart else OCTETS
            response = web.StreamResponse(headers={"Content-Type": content_type})
            return await send_stream(request, response, first, stream)
        finally:
            stream.close()


def metadata_of(instance: Retrievable, header: InstanceHeader, base: str) -> dict[str, Any]:
    """Return the JSON dataset of a header, by ascending tag; bulk is referred to."""
    location = location_of(base, instance)

    def uri(path: str) -> str:
        return f"{location}/bulkdata/{path}"

    reader = JsonReader(header.dataset, header.transfer_syntax_uid, uri, instance.character_set)
    found = reader.read()
    for element in header.bulk:
        if element.tag:
            found[f"{element.tag:08X}"] = {
                "vr": json_vr(element.tag, element.vr), "BulkDataURI": uri(f"{element.tag:08X}"),
            }  # fmt: skip
    # A dataset that does not parse is still told by its UIDs.
    for key, uid in (
        ("00080016", instance.sop_class_uid),
        ("00080018", instance.sop_instance_uid),
        ("0020000D", instance.study_instance_uid),
        ("0020000E", instance.series_instance_uid),
    ):
        found.setdefault(key, {"vr": "UI", "Value": [uid]})
    found["00083002"] = {"vr": "UI", "Value": [instance.transfer_syntax_uid]}
    return dict(sorted(found.items()))


def value_of(instance: Retrievable, opened: Opened, path: str) -> Dataset:
    """Return an element's value in little endian; NotFound. path: as in metadata's references."""
    header = header_of(instance, opened)
    if isinstance(header, AzekuraError):
        raise header
    syntax = instance.transfer_syntax_uid
    value: Dataset
    for element in header.bulk:
        if f"{element.tag:08X}" == path:
            vr = json_vr(element.tag, element.vr)
            value = part_of(opened.dataset, element.value_offset, element.value_length)
            break
    else:
        vr, start, end = _place(header.dataset, syntax, path)
        value = memoryview(header.dataset)[start:end]
    width = BINARY_WIDTHS.get(vr, 1)
    if is_big_endian(syntax) and width > 1:
        return memoryview(swapped(bytes(value[:]), width))
    return value


def _place(dataset: bytes, syntax: str, path: str) -> tuple[str, int, int]:
    """Return VR, start and end of a value in a header: a long one at any depth, a short one's."""
    if "/" not in path:
        found = find_element(dataset, syntax, int(path, 16))
        if found is not None:
            vr, start, length = found
            return json_vr(int(path, 16), vr), start, start + length
    reader = JsonReader(dataset, syntax, lambda _path: "")
    reader.read()
    place = reader.referred.get(path)
    if place is None:
        raise NotFound("retrieve bulk data", cause="the instance has no such element")
    return place


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise BadRequest(
            "retrieve bulk data", cause="a reference has tags of eight hexadecimal digits"
        )
    return text.upper()


def _wants_parts(request: web.Request) -> bool:
    for each in accepted(request):
        if covers(each.media_type, "multipart/related") and covers(each.inner_type, OCTETS):
            return True
        if each.media_type == OCTETS:
            return False
    raise NotAcceptable("retrieve bulk data", cause=f"bulk data is {OCTETS}")


def _etag(wanted: Sequence[Retrievable], base: str) -> str:
    digest = hashlib.sha256(f"{FORMAT} {base}".encode())
    for instance in wanted:
        digest.update(instance.sop_instance_uid.encode() + instance.sha256)
    return f'"{digest.hexdigest()[:32]}"'
