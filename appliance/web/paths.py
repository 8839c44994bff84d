"""What the paths and the host of a request say: UIDs and the base of the URLs in answers.

Invariant: what is taken from a request and put into an answer has a fixed grammar: no path, no
header and no markup can come through a UID or a host name.
"""

import re

from aiohttp import web

from appliance.web.problem import BadRequest
from appliance.web.search_parameters import SERIES_UID, SOP_UID, STUDY_UID

DICOM_WEB = "/dicom-web"
_UID = re.compile(r"[0-9.]{1,64}")
_HOST = re.compile(r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?P<port>:[0-9]{1,5})?")
_PARTS = (("study", STUDY_UID), ("series", SERIES_UID), ("instance", SOP_UID))


def uids_of(request: web.Request) -> dict[int, str]:
    """Return the UIDs in the path by tag; BadRequest for what is no UID."""
    found = {}
    for part, tag in _PARTS:
        uid = request.match_info.get(part)
        if uid is not None:
            found[tag] = checked_uid(uid)
    return found


def checked_uid(uid: str) -> str:
    """Return a UID that holds digits and dots only; BadRequest else."""
    if not _UID.fullmatch(uid):
        raise BadRequest("read the request", cause="a UID has digits and dots only")
    return uid


def base_url(request: web.Request) -> str:
    """Return where DICOMweb is for this client: https, and the host as it was called.

    A client that leaves the port out of its Host header (dicomweb-client does) means ours.
    """
    found = _HOST.fullmatch(request.host)
    if found is None:
        raise BadRequest("read the request", cause="the Host header is no host")
    host = request.host
    if found["port"] is None and request.transport is not None:
        host += f":{request.transport.get_extra_info('sockname')[1]}"
    return f"https://{host}{DICOM_WEB}"
