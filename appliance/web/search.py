"""QIDO-RS (PS3.18 section 10.6): searches for studies, series and instances.

Translates; the archive matches. Invariants: no key and no answer is logged; the first ROWS_HELD
answers are at hand before the status is said, further ones stream.
"""

import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
from aiohttp import web

from appliance.archive.query import Query
from appliance.dicom.attributes import Level
from appliance.dicom.elements import Value
from appliance.dicom.json_values import CHARACTER_SET, json_dataset
from appliance.web.accept import DICOM_JSON, accepts_json
from appliance.web.access import CALLER, SEARCH
from appliance.web.bridge import Workers
from appliance.web.limits import PIECE_BYTES
from appliance.web.paths import DICOM_WEB, base_url, uids_of
from appliance.web.problem import NotAcceptable
from appliance.web.routes import Route
from appliance.web.search_parameters import (
    RETRIEVE_URL,
    SERIES_UID,
    SOP_UID,
    STUDY_UID,
    Search,
    read_search,
)
from appliance.web.sending import send_stream

ROWS_HELD_MAX = 512
RESULTS_MAX = 100_000
_AVAILABILITY = 0x00080056
_FUZZY = (
    '299 Azekura "The fuzzymatching parameter is not supported. Only literal matching was done."'
)
_MORE = '299 Azekura "There are additional results that can be requested"'


class Finder(Protocol):
    """What a search needs of the archive."""

    def find(self, query: Query, retrieve_ae_title: str) -> Iterator[dict[int, Value]]:
        """Yield the answers, each with the requested tags."""


class SearchService:
    """Answers searches. Holds nothing that changes."""

    def __init__(self, finder: Finder, workers: Workers, ae_title: str) -> None:
        self._finder = finder
        self._workers = workers
        self._ae_title = ae_title

    def routes(self) -> list[Route]:
        """Return the routes of every level."""
        study = f"{DICOM_WEB}/studies/{{study}}"
        return [
            Route("search studies", "GET", (f"{DICOM_WEB}/studies",), SEARCH, self.studies),
            Route(
                "search series", "GET", (f"{DICOM_WEB}/series", f"{study}/series"), SEARCH,
                self.series,
            ),
            Route(
                "search instances", "GET",
                (
                    f"{DICOM_WEB}/instances", f"{study}/instances",
                    f"{DICOM_WEB}/series/{{series}}/instances",
                    f"{study}/series/{{series}}/instances",
                ),
                SEARCH, self.instances,
            ),
        ]  # fmt: skip

    async def studies(self, request: web.Request) -> web.StreamResponse:
        """Answer a search for studies."""
        return await self._answer(request, Level.STUDY)

    async def series(self, request: web.Request) -> web.StreamResponse:
        """Answer a search for series."""
        return await self._answer(request, Level.SERIES)

    async def instances(self, request: web.Request) -> web.StreamResponse:
        """Answer a search for instances."""
        return await self._answer(request, Level.INSTANCE)

    async def _answer(self, request: web.Request, level: Level) -> web.StreamResponse:
        if not accepts_json(request):
            raise NotAcceptable("search", cause=f"answers are {DICOM_JSON} only")
        search = read_search(level, uids_of(request), list(request.query.items()))
        query = Query("STUDY", level.value, search.identifier, True, request[CALLER].ae_title)
        base = base_url(request)
        stream = self._workers.stream(lambda: self._pieces(query, search, base))
        try:
            first, complete, more = await anext(stream)
            warnings = [_FUZZY] if search.fuzzy else []
            if search.unsupported:
                names = ", ".join(_quoted(name) for name in dict.fromkeys(search.unsupported))
                warnings.append(f'299 Azekura "These keys are not matched: {names}"')
            if more:
                warnings.append(_MORE)
            headers = [("Warning", warning) for warning in warnings]
            if complete and first == b"[]":
                return web.Response(status=204, headers=headers)
            if complete:
                return web.Response(body=first, content_type=DICOM_JSON, headers=headers)
            response = web.StreamResponse(headers=headers)
            response.content_type = DICOM_JSON
            return await send_stream(request, response, first, stream)
        finally:
            stream.close()

    def _pieces(self, query: Query, search: Search, base: str) -> Iterator[Any]:
        """Yield first (piece, whether it is all, whether there is more), then pieces."""
        rows = self._rows(query, search, base)
        held = list(itertools.islice(rows, ROWS_HELD_MAX))
        limit = RESULTS_MAX if search.limit is None else min(search.limit, RESULTS_MAX)
        more = len(held) > limit
        if more or len(held) < ROWS_HELD_MAX:
            yield b"[" + b",".join(held[:limit]) + b"]", True, more
            return
        yield b"[" + b",".join(held), False, False
        piece = bytearray()
        for row in itertools.islice(rows, max(0, limit - len(held))):
            piece += b"," + row
            if len(piece) >= PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
        yield bytes(piece) + b"]"

    def _rows(self, query: Query, search: Search, base: str) -> Iterator[bytes]:
        """Yield the answers from the offset on, one more than the limit."""
        answers = self._finder.find(query, self._ae_title)
        end = None if search.limit is None else search.offset + search.limit + 1
        for answer in itertools.islice(answers, search.offset, end):
            yield msgspec.json.encode(_row(answer, query, search, base))


def _row(answer: dict[int, Value], query: Query, search: Search, base: str) -> dict[str, Any]:
    requested = search.identifier.keys
    shown = {
        tag: value
        for tag, value in answer.items()
        if tag in requested and (value or tag in search.shown_empty)
    }
    shown[_AVAILABILITY] = answer[_AVAILABILITY]
    if answer.get(CHARACTER_SET):
        shown[CHARACTER_SET] = answer[CHARACTER_SET]
    url = f"{base}/studies/{answer[STUDY_UID]}"
    if query.level != Level.STUDY.value:
        url += f"/series/{answer[SERIES_UID]}"
    if query.level == Level.INSTANCE.value:
        url += f"/instances/{answer[SOP_UID]}"
    shown[RETRIEVE_URL] = url
    return json_dataset(shown)


def _quoted(name: str) -> str:
    """Return a parameter's name as a quoted string of a header may hold it."""
    return "".join(each for each in name[:64] if each.isalnum() or each in "._-")
