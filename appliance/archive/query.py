"""What an edge asks the archive to find: one query, whichever protocol it came by."""

import msgspec

from appliance.dicom.identifier import Identifier


class Query(msgspec.Struct, frozen=True):
    """A query or the selection of a retrieve.

    root: "PATIENT" or "STUDY". level: "PATIENT", "STUDY", "SERIES" or "IMAGE". relational: keys of
    any level may be combined (PS3.4 C.4.1.2.2.1). calling_ae: who asks, for what it may be told.
    """

    root: str
    level: str
    identifier: Identifier
    relational: bool = False
    calling_ae: str = ""
