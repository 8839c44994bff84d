"""WADO-URI (PS3.18 section 9): one instance by query parameters, as DICOM or as a picture.

Translates to what WADO-RS does. The older of two ways; viewers of twenty years know it.
"""

from aiohttp import web

from appliance.web.access import CALLER, RETRIEVE
from appliance.web.paths import DICOM_WEB, checked_uid
from appliance.web.problem import BadRequest, NotAcceptable
from appliance.web.rendered import MEDIA_TYPES, RenderService, options_of
from appliance.web.retrieve import DEFAULT, DICOM, RetrieveService
from appliance.web.routes import Route
from appliance.web.search_parameters import SERIES_UID, SOP_UID, STUDY_UID
from appliance.web.selecting import query_of_uids

_UIDS = (("studyUID", STUDY_UID), ("seriesUID", SERIES_UID), ("objectUID", SOP_UID))
_PICTURE = "image/jpeg"


class WadoUriService:
    """Answers `/dicom-web/wado`. Holds nothing that changes."""

    def __init__(self, instances: RetrieveService, pictures: RenderService) -> None:
        self._instances = instances
        self._pictures = pictures

    def routes(self) -> list[Route]:
        """Return the one route."""
        return [Route("retrieve by uri", "GET", (f"{DICOM_WEB}/wado",), RETRIEVE, self.retrieve)]

    async def retrieve(self, request: web.Request) -> web.StreamResponse:
        """Send the instance: application/dicom, or a picture of a frame, which is the default."""
        parameters = request.query
        if parameters.get("requestType") != "WADO":
            raise _bad("requestType must be WADO")
        if parameters.get("anonymize"):
            raise _bad("nothing is anonymized here")
        missing = [name for name, _ in _UIDS if not parameters.get(name)]
        if missing:
            raise _bad(f"{', '.join(missing)} is needed")
        uids = {tag: checked_uid(parameters[name]) for name, tag in _UIDS}
        query = query_of_uids(uids, request[CALLER].ae_title)
        wanted = [
            each.partition(";")[0].strip()
            for each in parameters.get("contentType", _PICTURE).split(",")
        ]
        if DICOM in wanted:
            syntax = parameters.get("transferSyntax") or DEFAULT
            return await self._instances.alone(request, query, (syntax,))
        media_type = next((each for each in wanted if each in MEDIA_TYPES), None)
        if media_type is None:
            raise NotAcceptable("retrieve", cause=f"there is {DICOM} and {', '.join(MEDIA_TYPES)}")
        frame = parameters.get("frameNumber", "1")
        if not frame.isascii() or not frame.isdigit() or not int(frame[:9]) >= 1:
            raise _bad("frameNumber is a number from 1 on")
        options = options_of(_as_rs(request))
        return await self._pictures.picture(query, int(frame), media_type, options)


def _as_rs(request: web.Request) -> dict[str, str]:
    """Return the parameters of a picture under the names that WADO-RS has."""
    parameters = request.query
    found = {}
    center, width = parameters.get("windowCenter"), parameters.get("windowWidth")
    if center and width:
        found["window"] = f"{center},{width}"
    if parameters.get("imageQuality"):
        found["quality"] = parameters["imageQuality"]
    columns, rows = parameters.get("columns"), parameters.get("rows")
    if columns or rows:
        found["viewport"] = f"{columns or rows},{rows or columns}"
    return found


def _bad(cause: str) -> BadRequest:
    return BadRequest("retrieve", cause=cause)
