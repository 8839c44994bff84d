"""WADO-RS for whole instances (PS3.18 section 10.4): studies, series, single instances.

Translates; the archive selects and opens, a confined process rewrites. Invariants:
- An instance whose stored transfer syntax is accepted goes out byte for byte.
- What can't be sent never makes an answer look whole: when nothing can be sent the status says why,
  when some can't, all others are sent and then the connection is cut in front of the end.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from aiohttp import web

from appliance.archive.extent import Dataset
from appliance.archive.query import Query
from appliance.archive.retrieval import Opened, Retrievable
from appliance.dicom.file_meta import build_file_meta
from appliance.dicom.uid import EXPLICIT_VR_LITTLE_ENDIAN
from appliance.foundation.errors import AzekuraError
from appliance.pixels.transcode import TARGETS, Transcoder
from appliance.web.accept import MediaRange, accepted, covers
from appliance.web.access import RETRIEVE
from appliance.web.bridge import Workers
from appliance.web.multipart import MultipartWriter, whole
from appliance.web.paths import base_url
from appliance.web.problem import NotAcceptable
from appliance.web.routes import Route
from appliance.web.selecting import (
    INSTANCE_PATH,
    SERIES_PATH,
    STUDY_PATH,
    Opener,
    Selector,
    location_of,
    opened_one,
    query_of,
    selected,
)
from appliance.web.sending import send_stream

DICOM = "application/dicom"
AS_STORED = "*"
DEFAULT = ""


class Form(NamedTuple):
    """How instances are wanted: in parts or alone, in which transfer syntaxes, best first."""

    multipart: bool
    syntaxes: tuple[str, ...]


def form_of(ranges: Sequence[MediaRange], *, single: bool) -> Form:
    """Return the form that a client accepts for DICOM instances; NotAcceptable.

    single: whether an instance may go out alone. A transfer syntax that is not said is the
    standard's default (PS3.18 section 8.7.3.3).
    """
    forms: dict[bool, list[str]] = {}
    for each in ranges:
        if each.media_type == DICOM and single:
            multipart, inner = False, DICOM
        elif covers(each.media_type, "multipart/related"):
            multipart, inner = True, each.inner_type
        else:
            continue
        if covers(inner, DICOM):
            forms.setdefault(multipart, []).append(each.transfer_syntax or DEFAULT)
    if not forms:
        raise NotAcceptable(
            "retrieve", cause=f"instances are {DICOM} in multipart/related",
            hint=f'Accept: multipart/related; type="{DICOM}"; transfer-syntax=*',
        )  # fmt: skip
    multipart, syntaxes = next(iter(forms.items()))
    return Form(multipart, tuple(dict.fromkeys(syntaxes)))


class Delivery:
    """Gives instances in the transfer syntaxes that are wanted. Shared by all requests."""

    def __init__(self, transcoder: Transcoder) -> None:
        self._transcoder = transcoder

    @contextlib.contextmanager
    def as_wanted(
        self, instance: Retrievable, opened: Opened, syntaxes: Sequence[str]
    ) -> Iterator[tuple[str, Dataset]]:
        """Give transfer syntax and dataset over a block; NotAcceptable, or why it can't be made."""
        stored = instance.transfer_syntax_uid
        if any(syntax in (AS_STORED, stored) for syntax in syntaxes):
            yield stored, opened.dataset
            return
        target = next((each for each in TARGETS if each in syntaxes), None)
        if target is None and DEFAULT in syntaxes:
            if stored == EXPLICIT_VR_LITTLE_ENDIAN:
                yield stored, opened.dataset
                return
            target = EXPLICIT_VR_LITTLE_ENDIAN
        if target is None:
            raise NotAcceptable("retrieve", cause=f"it is stored in {stored}")
        with contextlib.ExitStack() as stack:
            try:
                dataset: Dataset = stack.enter_context(
                    self._transcoder.converted(opened.dataset, stored, target)
                )
            except AzekuraError as error:
                if DEFAULT not in syntaxes or error.retry:
                    raise
                # What can't be decoded, a video say, is of more use as it is than not at all.
                target, dataset = stored, opened.dataset
            yield target, dataset


class RetrieveService:
    """Answers retrieves of instances. Holds nothing that changes."""

    def __init__(
        self, selector: Selector, opener: Opener, delivery: Delivery, workers: Workers
    ) -> None:
        self._selector = selector
        self._opener = opener
        self._delivery = delivery
        self._workers = workers

    def routes(self) -> list[Route]:
        """Return the routes of every level."""
        return [
            Route("retrieve study", "GET", (STUDY_PATH,), RETRIEVE, self.several),
            Route("retrieve series", "GET", (SERIES_PATH,), RETRIEVE, self.series),
            Route("retrieve instance", "GET", (INSTANCE_PATH,), RETRIEVE, self.instance),
        ]

    async def several(self, request: web.Request) -> web.StreamResponse:
        """Send the instances of a study in parts."""
        return await self._in_parts(request, form_of(accepted(request), single=False))

    async def series(self, request: web.Request) -> web.StreamResponse:
        """Send the instances of a series in parts."""
        return await self.several(request)

    async def instance(self, request: web.Request) -> web.StreamResponse:
        """Send one instance, alone or as the only part."""
        form = form_of(accepted(request), single=True)
        if form.multipart:
            return await self._in_parts(request, form)
        return await self.alone(request, query_of(request), form.syntaxes)

    async def alone(
        self, request: web.Request, query: Query, syntaxes: Sequence[str]
    ) -> web.StreamResponse:
        """Send one instance that is no part of anything."""
        response = web.StreamResponse()

        def pieces() -> Iterator[bytes]:
            instance, opened = opened_one(self._opener, selected(self._selector, query))
            with self._delivery.as_wanted(instance, opened, syntaxes) as (syntax, dataset):
                meta = _meta(instance, syntax)
                response.content_length = len(meta) + len(dataset)
                response.headers["Content-Type"] = f"{DICOM}; transfer-syntax={syntax}"
                yield from whole(meta, dataset)

        stream = self._workers.stream(pieces)
        try:
            return await send_stream(request, response, await anext(stream), stream)
        finally:
            stream.close()

    async def _in_parts(self, request: web.Request, form: Form) -> web.StreamResponse:
        query, base = query_of(request), base_url(request)
        writer = MultipartWriter(DICOM)

        def pieces() -> Iterator[bytes]:
            failure: AzekuraError | None = None
            sent = False
            wanted = selected(self._selector, query)
            with contextlib.closing(self._opener.open_all(wanted)) as instances:
                for instance, opened in instances:
                    if isinstance(opened, AzekuraError):
                        failure = failure or opened
                        continue
                    try:
                        with self._delivery.as_wanted(instance, opened, form.syntaxes) as found:
                            yield from self._part(writer, instance, found, base)
                        sent = True
                    except AzekuraError as error:
                        failure = failure or error
            if failure is None:
                yield writer.end()
                return
            if sent:
                yield writer.held()
            raise failure

        stream = self._workers.stream(pieces)
        try:
            first = await anext(stream)
            response = web.StreamResponse(headers={"Content-Type": writer.content_type})
            return await send_stream(request, response, first, stream)
        finally:
            stream.close()

    @staticmethod
    def _part(
        writer: MultipartWriter, instance: Retrievable, found: tuple[str, Dataset], base: str
    ) -> Iterator[bytes]:
        syntax, dataset = found
        return writer.part(
            f"{DICOM}; transfer-syntax={syntax}",
            location_of(base, instance),
            _meta(instance, syntax),
            dataset,
        )


def _meta(instance: Retrievable, syntax: str) -> bytes:
    return build_file_meta(instance.sop_class_uid, instance.sop_instance_uid, syntax, "")
