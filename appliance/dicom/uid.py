"""UIDs that the archive must know: transfer syntaxes, storage classes, and what a UID may be.

Owns no state. Must not open a dataset. Invariant: no Deflated transfer syntax is ever offered.
"""

import re
from collections.abc import Iterable

from pynetdicom import sop_class as _sop_class

IMPLEMENTATION_CLASS_UID = "2.25.26347006269442928717040261815423692899"
"""Ours in every association and file meta group; derived from a UUID (PS3.5 B.2)."""

IMPLEMENTATION_VERSION_NAME = "AZEKURA_0_1"

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
GE_PRIVATE_IMPLICIT = "1.2.840.113619.5.2"
"""GE's: implicit VR little endian, but for pixel data in big endian."""

UNCOMPRESSED_TRANSFER_SYNTAXES: tuple[str, ...] = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
)

DEFLATED_TRANSFER_SYNTAXES: frozenset[str] = frozenset(
    {
        DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
        "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression: frames only, but a bomb too
    }
)

COMPRESSED_TRANSFER_SYNTAXES: tuple[str, ...] = (
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
    "1.2.840.10008.1.2.4.57",  # JPEG Lossless
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless SV1
    "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.92",  # JPEG 2000 Multi-component Lossless
    "1.2.840.10008.1.2.4.93",  # JPEG 2000 Multi-component
    "1.2.840.10008.1.2.4.94",  # JPIP Referenced
    "1.2.840.10008.1.2.4.100",  # MPEG2 Main Profile / Main Level
    "1.2.840.10008.1.2.4.100.1",  # the same, Fragmentable
    "1.2.840.10008.1.2.4.101",  # MPEG2 Main Profile / High Level
    "1.2.840.10008.1.2.4.101.1",
    "1.2.840.10008.1.2.4.102",  # MPEG-4 AVC/H.264 High Profile / Level 4.1
    "1.2.840.10008.1.2.4.102.1",
    "1.2.840.10008.1.2.4.103",
    "1.2.840.10008.1.2.4.103.1",
    "1.2.840.10008.1.2.4.104",
    "1.2.840.10008.1.2.4.104.1",
    "1.2.840.10008.1.2.4.105",
    "1.2.840.10008.1.2.4.105.1",
    "1.2.840.10008.1.2.4.106",
    "1.2.840.10008.1.2.4.106.1",
    "1.2.840.10008.1.2.4.107",  # HEVC/H.265 Main
    "1.2.840.10008.1.2.4.108",  # HEVC/H.265 Main 10
    "1.2.840.10008.1.2.4.110",  # JPEG XL Lossless
    "1.2.840.10008.1.2.4.111",  # JPEG XL JPEG Recompression
    "1.2.840.10008.1.2.4.112",  # JPEG XL
    "1.2.840.10008.1.2.4.201",  # HTJ2K Lossless
    "1.2.840.10008.1.2.4.202",  # HTJ2K Lossless RPCL
    "1.2.840.10008.1.2.4.203",  # HTJ2K
    "1.2.840.10008.1.2.4.204",  # JPIP HTJ2K Referenced
    "1.2.840.10008.1.2.5",  # RLE Lossless
    "1.2.840.10008.1.2.7.1",  # SMPTE ST 2110-20
    "1.2.840.10008.1.2.7.2",
    "1.2.840.10008.1.2.7.3",
    # retired JPEG processes, still found in old archives
    *(f"1.2.840.10008.1.2.4.{n}" for n in (52, 53, 54, 55, 56, 58, 59, 60, 61, 62, 63, 64, 65, 66)),
)

ACCEPTED_TRANSFER_SYNTAXES: tuple[str, ...] = (
    *UNCOMPRESSED_TRANSFER_SYNTAXES,
    *COMPRESSED_TRANSFER_SYNTAXES,
    ENCAPSULATED_UNCOMPRESSED,
    GE_PRIVATE_IMPLICIT,
)
"""Every transfer syntax that is kept bit-exact."""

STORAGE_SOP_CLASSES: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *_sop_class._STORAGE_CLASSES.values(),  # noqa: SLF001 - pynetdicom's list, no public name
            "1.2.840.10008.5.1.4.1.1.5",  # retired: Nuclear Medicine
            "1.2.840.10008.5.1.4.1.1.3",  # retired: Ultrasound Multi-frame
            "1.2.840.10008.5.1.4.1.1.6",  # retired: Ultrasound
            "1.2.840.10008.5.1.4.1.1.8",  # retired: Standalone Overlay
            "1.2.840.10008.5.1.4.1.1.9",  # retired: Standalone Curve
            "1.2.840.10008.5.1.4.1.1.10",  # retired: Standalone Modality LUT
            "1.2.840.10008.5.1.4.1.1.11",  # retired: Standalone VOI LUT
            "1.2.840.10008.5.1.4.1.1.12.3",  # retired: X-Ray Angiographic Bi-plane
            "1.2.840.10008.5.1.4.1.1.129",  # retired: Standalone PET Curve
            "1.2.840.10008.5.1.4.1.1.77.1",  # retired: VL Image
            "1.2.840.10008.5.1.4.1.1.77.2",  # retired: VL Multi-frame
            "1.2.840.10008.5.1.4.1.1.88.1",  # retired: Text SR
            "1.2.840.10008.5.1.4.1.1.88.2",  # retired: Audio SR
            "1.2.840.10008.5.1.4.1.1.88.3",  # retired: Detail SR
            "1.2.840.10008.5.1.4.1.1.88.4",  # retired: Comprehensive SR
        )
    )
)
"""Storage SOP classes that are taken; configured private ones come on top."""

KEY_OBJECT_SELECTION = "1.2.840.10008.5.1.4.1.1.88.59"

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT_PUSH = "1.2.840.10008.1.20.1"
STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
RETIRED_PRINT_SOP_CLASSES = (
    "1.2.840.10008.5.1.1.27",  # Stored Print
    "1.2.840.10008.5.1.1.29",  # Hardcopy Grayscale Image
    "1.2.840.10008.5.1.1.30",  # Hardcopy Color Image
)
"""Not storage classes of PS3.4, but sent by pynetdicom's and DCMTK's senders as if they were."""


def stored_sop_classes(extra: Iterable[str]) -> tuple[str, ...]:
    """Return every SOP class whose instances are taken, with the configured ones."""
    return tuple(dict.fromkeys((*STORAGE_SOP_CLASSES, *RETIRED_PRINT_SOP_CLASSES, *extra)))


PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
PATIENT_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.1.2"
PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.3"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"

_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*", re.ASCII)
_PATH_SAFE_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)


def is_valid_uid(uid: str) -> bool:
    """Tell whether `uid` follows PS3.5 section 9: 1..64 characters, no leading zeros."""
    return len(uid) <= 64 and _UID.fullmatch(uid) is not None


def is_path_safe_uid(uid: str) -> bool:
    """Tell whether `uid` may stand in a member name: digits and dots, 1..64 of them, no ".."."""
    return _PATH_SAFE_UID.fullmatch(uid) is not None and ".." not in uid and uid[0] != "."


def is_uncompressed(transfer_syntax_uid: str) -> bool:
    """Tell whether pixel data lies native in this transfer syntax."""
    return (
        transfer_syntax_uid in UNCOMPRESSED_TRANSFER_SYNTAXES
        or transfer_syntax_uid == GE_PRIVATE_IMPLICIT
    )


def is_deflated(transfer_syntax_uid: str) -> bool:
    """Tell whether the syntax holds a deflate stream; such a syntax is never offered."""
    return transfer_syntax_uid in DEFLATED_TRANSFER_SYNTAXES


def is_implicit(transfer_syntax_uid: str) -> bool:
    """Tell whether elements carry no VR in this transfer syntax."""
    return transfer_syntax_uid in (IMPLICIT_VR_LITTLE_ENDIAN, GE_PRIVATE_IMPLICIT)


def is_big_endian(transfer_syntax_uid: str) -> bool:
    """Tell whether element headers are big endian in this transfer syntax."""
    return transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN
