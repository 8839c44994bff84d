"""Whether the DICOM port answers as a DICOM node does."""

from collections.abc import Callable

from appliance.foundation.errors import PeerError, PeerRefused
from appliance.health.check import Findings, error, failed, ok

CONDITION = "dicom_port"


def check_dicom_port(port: int, echo: Callable[[], None]) -> Findings:
    """Send a C-ECHO by `echo`, which raises a PeerError when it gets no Success.

    A rejection proves the port as well: it is a DICOM answer, to a title that nobody listed.
    """
    if port == 0:
        return [ok(CONDITION, "the port is any free one: not tried")]
    try:
        echo()
    except PeerRefused as cause:
        return [
            ok(
                CONDITION,
                f"port {port} answers, and does not take calls from this box ({cause.cause})",
                "That is sound where no peer of this address is listed with echo",
            )
        ]
    except PeerError as cause:
        return [
            error(
                CONDITION,
                f"port {port}: {failed(CONDITION, cause).sentence}",
                "azekura receive does not run, or another program has the port",
            )
        ]
    return [ok(CONDITION, f"port {port} answers C-ECHO")]
