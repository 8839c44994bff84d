"""WADO-RS frames (PS3.18 section 10.4.1.1.6), and the frames that pictures are made of.

Translates; frames are found by `pixels`, decoded in a confined process. Invariants: a frame whose
stored form is accepted goes out as it is stored (native ones in little endian); only the wanted
frames are decoded, one at a time.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from aiohttp import web

from appliance.archive.extent import Dataset
from appliance.archive.headers import header_of
from appliance.archive.retrieval import Opened, Retrievable
from appliance.dicom.json_model import JsonReader, swapped
from appliance.dicom.uid import EXPLICIT_VR_LITTLE_ENDIAN, GE_PRIVATE_IMPLICIT, is_big_endian
from appliance.foundation.errors import AzekuraError, NotFound
from appliance.pixels.layout import (
    PixelLayout,
    encapsulated_frames,
    is_encapsulated,
    joined,
    layout_of,
    native_frame,
)
from appliance.pixels.single_frame import single_frame_dataset
from appliance.pixels.transcode import Transcoder
from appliance.pixels.transcode_messages import FRAME, Job
from appliance.web.accept import MediaRange, accepted, covers
from appliance.web.access import RETRIEVE
from appliance.web.bridge import Workers
from appliance.web.multipart import MultipartWriter, whole
from appliance.web.paths import base_url
from appliance.web.problem import BadRequest, NotAcceptable
from appliance.web.routes import Route
from appliance.web.selecting import (
    INSTANCE_PATH,
    Opener,
    Selector,
    location_of,
    opened_one,
    query_of,
    selected,
)
from appliance.web.sending import send_stream

OCTETS = "application/octet-stream"
FRAMES_MAX = 1000
_JPEG = ("50", "51", "57", "70", *(str(number) for number in range(52, 67) if number != 57))
_MEDIA_TYPES = {
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{each}" for each in _JPEG), "image/jpeg"),
    "1.2.840.10008.1.2.5": "image/dicom-rle",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.110": "image/jxl",
    "1.2.840.10008.1.2.4.111": "image/jxl",
    "1.2.840.10008.1.2.4.112": "image/jxl",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
}
"""PS3.18 section 8.7.3.3.2; what is not here is octets."""


class Image:
    """The frames of one instance at hand. Used by one thread."""

    def __init__(self, instance: Retrievable, opened: Opened) -> None:
        """NotFound when it has none."""
        header = header_of(instance, opened)
        if isinstance(header, AzekuraError):
            raise header
        reader = JsonReader(header.dataset, header.transfer_syntax_uid, lambda _path: "")
        self.layout: PixelLayout = layout_of(header, reader.read())
        self.syntax = instance.transfer_syntax_uid
        self._dataset = opened.dataset
        self._fragments: list[list[tuple[int, int]]] | None = None

    def stored(self, index: int) -> Dataset:
        """Return a frame as it is stored, from 0 on; NotFound, DatasetNotUnderstood."""
        if not is_encapsulated(self.syntax):
            return native_frame(self._dataset, self.layout, index)
        if not 0 <= index < self.layout.frames:
            raise NotFound("read frames", cause="the instance has no such frame")
        if self._fragments is None:
            self._fragments = encapsulated_frames(self._dataset, self.layout)
        return memoryview(joined(self._dataset, self._fragments[index]))

    def alone(self, index: int) -> memoryview:
        """Return a dataset that has this frame only, in the stored transfer syntax."""
        frame = bytes(self.stored(index)[:])
        return single_frame_dataset(self._dataset, self.layout, self.syntax, frame)

    def native(self, index: int, transcoder: Transcoder) -> bytes:
        """Return a frame's samples, little endian; errors as the transcoder's."""
        if is_encapsulated(self.syntax):
            with transcoder.result(self.alone(index), Job(self.syntax, FRAME)) as samples:
                return bytes(samples)
        frame = bytes(self.stored(index)[:])
        turned = is_big_endian(self.syntax) or self.syntax == GE_PRIVATE_IMPLICIT
        width = self.layout.bits_allocated // 8
        return swapped(frame, width) if turned and width > 1 else frame


class Form(NamedTuple):
    """How frames are wanted: in parts or alone; stored ones by syntax; whether decoded ones do."""

    multipart: bool
    ranges: tuple[MediaRange, ...]

    def takes_stored(self, syntax: str) -> bool:
        """Tell whether frames may go out as they are stored."""
        media_type = media_type_of(syntax)
        for each in self.ranges:
            wanted = each.inner_type if self.multipart else each.media_type
            named = each.transfer_syntax in ("*", syntax)
            if covers(wanted, media_type) and (named or not each.transfer_syntax):
                return True
            if named and covers(wanted, OCTETS):
                return True
        return False

    def takes_native(self) -> bool:
        """Tell whether decoded samples are accepted."""
        return any(
            covers(each.inner_type if self.multipart else each.media_type, OCTETS)
            and each.transfer_syntax in ("", "*", EXPLICIT_VR_LITTLE_ENDIAN)
            for each in self.ranges
        )


def media_type_of(syntax: str) -> str:
    """Return the media type of frames that are stored in a transfer syntax."""
    return _MEDIA_TYPES.get(syntax, OCTETS)


def form_of(ranges: Sequence[MediaRange], *, single: bool) -> Form:
    """Return the form in which frames are accepted; parts where both are."""
    parts = [each for each in ranges if covers(each.media_type, "multipart/related")]
    if parts:
        return Form(True, tuple(parts))
    if single:
        return Form(False, tuple(ranges))
    raise NotAcceptable("retrieve frames", cause="several frames go out in multipart/related")


class FrameService:
    """Answers retrieves of frames. Holds nothing that changes."""

    def __init__(
        self, selector: Selector, opener: Opener, transcoder: Transcoder, workers: Workers
    ) -> None:
        self._selector = selector
        self._opener = opener
        self._transcoder = transcoder
        self._workers = workers

    def routes(self) -> list[Route]:
        """Return the one route."""
        paths = (f"{INSTANCE_PATH}/frames/{{frames}}",)
        return [Route("retrieve frames", "GET", paths, RETRIEVE, self.frames)]

    async def frames(self, request: web.Request) -> web.StreamResponse:
        """Send frames, in parts or one alone."""
        numbers = frame_numbers(request)
        form = form_of(accepted(request), single=len(numbers) == 1)
        query, base = query_of(request), base_url(request)
        response = web.StreamResponse()

        def pieces() -> Iterator[bytes]:
            instance, opened = opened_one(self._opener, selected(self._selector, query))
            image = Image(instance, opened)
            stored = form.takes_stored(image.syntax)
            if not stored and not form.takes_native():
                raise NotAcceptable("retrieve frames", cause=f"it is stored in {image.syntax}")
            media_type = media_type_of(image.syntax) if stored else OCTETS
            as_is = stored and is_encapsulated(image.syntax)
            syntax = image.syntax if as_is else EXPLICIT_VR_LITTLE_ENDIAN
            content_type = f"{media_type}; transfer-syntax={syntax}"
            writer = MultipartWriter(media_type)
            response.headers["Content-Type"] = (
                writer.content_type if form.multipart else content_type
            )
            for number in numbers:
                frame: Dataset
                if as_is:
                    frame = image.stored(number - 1)
                else:
                    frame = memoryview(image.native(number - 1, self._transcoder))
                if form.multipart:
                    location = f"{location_of(base, instance)}/frames/{number}"
                    yield from writer.part(content_type, location, b"", frame)
                else:
                    response.content_length = len(frame)
                    yield from whole(b"", frame)
            if form.multipart:
                yield writer.end()

        stream = self._workers.stream(pieces)
        try:
            return await send_stream(request, response, await anext(stream), stream)
        finally:
            stream.close()


def frame_numbers(request: web.Request) -> list[int]:
    """Return the frame numbers of a path, from 1 on; BadRequest."""
    parts = request.match_info["frames"].split(",")
    good = all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts)
    if not good or len(parts) > FRAMES_MAX or "0" in parts:
        raise BadRequest("retrieve frames", cause="frames are numbers from 1 on, with commas")
    return [int(part) for part in parts]
