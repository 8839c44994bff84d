"""DIMSE status codes (PS3.7 annex C, PS3.4 annexes B, C and J) and the one table error → status.

Owns no state. Must not know about associations.
"""

from appliance.foundation import errors

SUCCESS = 0x0000
CANCEL = 0xFE00
PENDING = 0xFF00
PENDING_WITH_UNSUPPORTED_KEYS = 0xFF01

PROCESSING_FAILURE = 0x0110
NO_SUCH_ATTRIBUTE = 0x0105
DUPLICATE_SOP_INSTANCE = 0x0111
NO_SUCH_SOP_INSTANCE = 0x0112
INVALID_ARGUMENT_VALUE = 0x0115
CLASS_INSTANCE_CONFLICT = 0x0119
MISSING_ATTRIBUTE = 0x0120
SOP_CLASS_NOT_SUPPORTED = 0x0122
NO_SUCH_ACTION = 0x0123
NOT_AUTHORIZED = 0x0124
DUPLICATE_INVOCATION = 0x0210
UNRECOGNIZED_OPERATION = 0x0211
MISTYPED_ARGUMENT = 0x0212
RESOURCE_LIMITATION = 0x0213

OUT_OF_RESOURCES = 0xA700
DATASET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

OUT_OF_RESOURCES_MATCHES = 0xA701
OUT_OF_RESOURCES_SUBOPERATIONS = 0xA702
MOVE_DESTINATION_UNKNOWN = 0xA801
IDENTIFIER_DOES_NOT_MATCH = 0xA900
UNABLE_TO_PROCESS = 0xC001
SUBOPERATIONS_WITH_FAILURES = 0xB000

COMMITMENT_NO_SUCH_INSTANCE = 0x0112
COMMITMENT_PROCESSING_FAILURE = 0x0110
COMMITMENT_RESOURCE_LIMITATION = 0x0213
COMMITMENT_CLASS_NOT_SUPPORTED = 0x0122
COMMITMENT_CLASS_INSTANCE_CONFLICT = 0x0119

_STORE: tuple[tuple[type[errors.AzekuraError], int], ...] = (
    (errors.DatasetNotUnderstood, CANNOT_UNDERSTAND),
    (errors.DatasetMismatch, DATASET_DOES_NOT_MATCH),
    (errors.LimitExceeded, OUT_OF_RESOURCES),
    (errors.Refused, CANNOT_UNDERSTAND),
    (errors.OutOfSpace, OUT_OF_RESOURCES),
    (errors.StorageFailed, OUT_OF_RESOURCES),
    (errors.Busy, OUT_OF_RESOURCES),
    (errors.NotAccepting, OUT_OF_RESOURCES),
)
_QUERY: tuple[tuple[type[errors.AzekuraError], int], ...] = (
    (errors.DatasetNotUnderstood, CANNOT_UNDERSTAND),
    (errors.DatasetMismatch, IDENTIFIER_DOES_NOT_MATCH),
    (errors.UsageError, IDENTIFIER_DOES_NOT_MATCH),
    (errors.LimitExceeded, OUT_OF_RESOURCES),
    (errors.Refused, UNABLE_TO_PROCESS),
    (errors.OutOfSpace, OUT_OF_RESOURCES),
    (errors.Busy, OUT_OF_RESOURCES),
)
_RETRIEVE: tuple[tuple[type[errors.AzekuraError], int], ...] = (
    (errors.NotFound, MOVE_DESTINATION_UNKNOWN),
    (errors.LimitExceeded, OUT_OF_RESOURCES_MATCHES),
    *_QUERY,
    (errors.CloudError, OUT_OF_RESOURCES_SUBOPERATIONS),
    (errors.KeyUnavailable, OUT_OF_RESOURCES_SUBOPERATIONS),
)


def _look_up(
    table: tuple[tuple[type[errors.AzekuraError], int], ...], error: BaseException, default: int
) -> int:
    for kind, code in table:
        if isinstance(error, kind):
            return code
    return default


def store_status(error: BaseException) -> int:
    """Return the C-STORE status of an error (PS3.4 B.2.3); 0x0110 for one without its own."""
    return _look_up(_STORE, error, PROCESSING_FAILURE)


def find_status(error: BaseException) -> int:
    """Return the C-FIND status of an error (PS3.4 C.4.1.1.4); 0xC001 for one without its own."""
    return _look_up(_QUERY, error, UNABLE_TO_PROCESS)


def retrieve_status(error: BaseException) -> int:
    """Return the C-MOVE or C-GET status of an error (PS3.4 C.4.2.1.5, C.4.3.1.4)."""
    return _look_up(_RETRIEVE, error, UNABLE_TO_PROCESS)


def is_pending(status: int) -> bool:
    """Tell whether a status announces further answers."""
    return status in (PENDING, PENDING_WITH_UNSUPPORTED_KEYS)
