"""What a client accepts: media types with parameters, the most wanted first (RFC 9110 12.5.1).

The query parameter `accept` counts before the header (PS3.18 section 8.3.3.1). Must not decide what
is sent: the services do.
"""

import re
from typing import NamedTuple

from aiohttp import web

from appliance.web.problem import BadRequest

DICOM_JSON = "application/dicom+json"
RANGES_MAX = 32
_PARAMETER = re.compile(r';\s*([A-Za-z0-9!#$&^_.+-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;,"]*)\s*')
_TYPE = re.compile(r"\s*([A-Za-z0-9!#$&^_.*+-]+/[A-Za-z0-9!#$&^_.*+-]+)\s*")


class MediaRange(NamedTuple):
    """One media type that is accepted; names of parameters in small letters."""

    media_type: str
    parameters: dict[str, str]
    quality: float

    @property
    def inner_type(self) -> str:
        """The media type of the parts of a multipart; any where it is not said."""
        return self.parameters.get("type", "*/*").lower()

    @property
    def transfer_syntax(self) -> str:
        """The transfer syntax asked for, "" where none is."""
        return self.parameters.get("transfer-syntax", "")


def accepted(request: web.Request) -> list[MediaRange]:
    """Return what is accepted, the most wanted first; anything where nothing is said."""
    text = request.query.get("accept") or ", ".join(request.headers.getall("Accept", []))
    if not text.strip():
        return [MediaRange("*/*", {}, 1.0)]
    found: list[MediaRange] = []
    position = 0
    while position < len(text) and len(found) < RANGES_MAX:
        start = _TYPE.match(text, position)
        if start is None:
            raise BadRequest("read Accept", cause="it is no list of media types")
        position = start.end()
        parameters: dict[str, str] = {}
        while (each := _PARAMETER.match(text, position)) is not None:
            parameters[each[1].lower()] = _unquoted(each[2])
            position = each.end()
        found.append(MediaRange(start[1].lower(), parameters, _quality(parameters)))
        if position < len(text):
            if text[position] != ",":
                raise BadRequest("read Accept", cause="it is no list of media types")
            position += 1
    wanted = [each for each in found if each.quality > 0]
    return sorted(wanted, key=lambda each: -each.quality)


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value


def _quality(parameters: dict[str, str]) -> float:
    try:
        return min(1.0, max(0.0, float(parameters.pop("q", "1"))))
    except ValueError:
        return 1.0


def covers(wanted: str, offered: str) -> bool:
    """Tell whether a media range covers a media type."""
    if wanted in ("*/*", offered):
        return True
    kind, _, subtype = wanted.partition("/")
    return subtype == "*" and offered.startswith(f"{kind}/")


def accepts_json(request: web.Request) -> bool:
    """Tell whether DICOM JSON is accepted, under its own name or as plain JSON."""
    return any(
        covers(each.media_type, DICOM_JSON) or each.media_type == "application/json"
        for each in accepted(request)
    )
