"""Rendered pictures and thumbnails (PS3.18 section 10.4.1.1.3), made in a confined process.

Translates parameters; must not touch a pixel. Nothing is drawn into a picture.
"""

from collections.abc import Mapping, Sequence

from aiohttp import web

from appliance.archive.query import Query
from appliance.archive.retrieval import Retrievable
from appliance.foundation.errors import NotFound
from appliance.pixels.transcode import Transcoder
from appliance.pixels.transcode_messages import PICTURE, Job
from appliance.web.accept import accepted, covers
from appliance.web.access import RETRIEVE
from appliance.web.bridge import Workers
from appliance.web.frames import Image, frame_numbers
from appliance.web.problem import BadRequest, NotAcceptable
from appliance.web.routes import Route
from appliance.web.selecting import (
    EVERY_PATH,
    INSTANCE_PATH,
    Opener,
    Selector,
    opened_one,
    query_of,
    selected,
)

MEDIA_TYPES = ("image/jpeg", "image/png", "image/gif")
FUNCTIONS = ("linear", "linear-exact", "sigmoid")
VIEWPORT_MAX = 8192
THUMBNAIL = "200,200"
TRIED_MAX = 16
"""Instances of a study or series that are tried for a thumbnail."""


class RenderService:
    """Answers retrieves of pictures. Holds nothing that changes."""

    def __init__(
        self, selector: Selector, opener: Opener, transcoder: Transcoder, workers: Workers
    ) -> None:
        self._selector = selector
        self._opener = opener
        self._transcoder = transcoder
        self._workers = workers

    def routes(self) -> list[Route]:
        """Return the routes of pictures and thumbnails."""
        frame = f"{INSTANCE_PATH}/frames/{{frames}}"
        thumbnails = (*(f"{path}/thumbnail" for path in EVERY_PATH), f"{frame}/thumbnail")
        return [
            Route(
                "retrieve rendered", "GET", (f"{INSTANCE_PATH}/rendered", f"{frame}/rendered"),
                RETRIEVE, self.rendered,
            ),
            Route("retrieve thumbnail", "GET", thumbnails, RETRIEVE, self.thumbnail),
        ]  # fmt: skip

    async def rendered(self, request: web.Request) -> web.StreamResponse:
        """Send a picture of one frame, the first where none is named."""
        options = options_of(request.query)
        return await self._answer(request, options)

    async def thumbnail(self, request: web.Request) -> web.StreamResponse:
        """Send a small picture of the first instance that has an image."""
        options = options_of(request.query)
        options.setdefault("viewport", THUMBNAIL)
        return await self._answer(request, options)

    async def _answer(self, request: web.Request, options: dict[str, str]) -> web.StreamResponse:
        media_type = media_type_of(request)
        frame = 1
        if "frames" in request.match_info:
            numbers = frame_numbers(request)
            if len(numbers) != 1:
                raise BadRequest("render", cause="one frame at a time is rendered")
            frame = numbers[0]
        return await self.picture(query_of(request), frame, media_type, options)

    async def picture(
        self, query: Query, frame: int, media_type: str, options: Mapping[str, str]
    ) -> web.Response:
        """Return a picture of a frame, from 1 on, of the first instance that has an image."""
        job_options = {**options, "media_type": media_type, "frame": str(frame - 1)}

        def make() -> bytes:
            wanted = selected(self._selector, query)
            return self._rendered(wanted, frame - 1, job_options)

        body = await self._workers.call(make)
        headers = {"Cache-Control": "private, max-age=3600"}
        return web.Response(body=body, content_type=media_type, headers=headers)

    def _rendered(
        self, wanted: Sequence[Retrievable], index: int, options: dict[str, str]
    ) -> bytes:
        tried = wanted[:TRIED_MAX] if len(wanted) > 1 else wanted
        for number, instance in enumerate(tried):
            try:
                found, opened = opened_one(self._opener, [instance])
                image = Image(found, opened)
                dataset = image.alone(index)
            except NotFound:
                if number == len(tried) - 1:
                    raise
                continue
            with self._transcoder.result(dataset, Job(image.syntax, PICTURE, options)) as picture:
                return bytes(picture)
        raise NotFound("render", cause="no instance here has an image")


def media_type_of(request: web.Request) -> str:
    """Return the media type of a picture that is accepted; NotAcceptable."""
    for each in accepted(request):
        for offered in MEDIA_TYPES:
            if covers(each.media_type, offered):
                return offered
    raise NotAcceptable("render", cause=f"pictures are {', '.join(MEDIA_TYPES)}")


def options_of(query: Mapping[str, str]) -> dict[str, str]:
    """Return the worker's options for the parameters of a picture; BadRequest."""
    options: dict[str, str] = {}
    window = query.get("window", "")
    if window:
        parts = [part.strip() for part in window.split(",")]
        parts += ["linear"] if len(parts) == 2 else []
        if len(parts) != 3 or parts[2] not in FUNCTIONS:
            raise _bad("window is center,width[,linear|linear-exact|sigmoid]")
        numbers = [_number("window", part) for part in parts[:2]]
        if numbers[1] <= 0:
            raise _bad("the width of a window is more than 0")
        options["window"] = f"{numbers[0]!r},{numbers[1]!r},{parts[2]}"
    viewport = query.get("viewport", "")
    if viewport:
        options["viewport"] = _viewport(viewport)
    quality = query.get("quality", "")
    if quality:
        if not quality.isascii() or not quality.isdigit() or not 1 <= int(quality[:4]) <= 100:
            raise _bad("quality is 1 to 100")
        options["quality"] = quality
    return options


def _viewport(text: str) -> str:
    parts = text.split(",")
    if len(parts) not in (2, 6):
        raise _bad("viewport is width,height[,x,y,width,height]")
    size = [_number("viewport", part) for part in parts[:2]]
    if not all(1 <= number <= VIEWPORT_MAX for number in size):
        raise _bad(f"width and height of a viewport are 1 to {VIEWPORT_MAX}")
    region = ["" if not part.strip() else repr(_number("viewport", part)) for part in parts[2:]]
    if any(part and float(part) < 0 for part in region):
        raise _bad("a viewport's region is not turned here")
    return ",".join([*(str(int(number)) for number in size), *region])


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < 1e12:
        raise _bad(f"{name} has numbers")
    return number


def _bad(cause: str) -> BadRequest:
    return BadRequest("render", cause=cause)
