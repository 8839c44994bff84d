"""The tables that the header scanners look raw tags up in, one set per byte order.

Owns which tags the identity and the index need. Must not read bytes.
"""

from appliance.dicom.attributes import ITEM_VRS, SCANNED
from appliance.dicom.elements import ByteOrder

CHARACTER_SET = 0x00080005
SOP_CLASS_UID = 0x00080016
SOP_INSTANCE_UID = 0x00080018
PATIENT_ID = 0x00100020
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E
EVIDENCE_SEQUENCE = 0x0040A375

IDENTITY = (
    STUDY_INSTANCE_UID, SERIES_INSTANCE_UID, SOP_INSTANCE_UID, SOP_CLASS_UID, PATIENT_ID,
)  # fmt: skip
"""In the order of the fields of Identity."""

LAST_SCANNED = max(SCANNED)
"""Elements behind this tag are not looked at."""


class Layout:
    """Raw tag → meaning for one byte order. Immutable after construction."""

    def __init__(self, order: ByteOrder) -> None:
        self.order = order
        self.identity = {order.raw(tag): place for place, tag in enumerate(IDENTITY)}
        self.series = order.raw(SERIES_INSTANCE_UID)
        self.scanned = order.raws(SCANNED)
        self.inner = order.raws((*ITEM_VRS, CHARACTER_SET))
