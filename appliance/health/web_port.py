"""Whether DICOMweb answers, and how long its certificate still holds."""

from collections.abc import Callable
from datetime import timedelta

from cryptography import x509

from appliance.foundation.clock import Clock
from appliance.health.check import Findings, error, ok, warning

CONDITION = "web_port"
EXPIRES_SOON = timedelta(days=14)


def check_web_port(clock: Clock, port: int, ask: Callable[[], bytes]) -> Findings:
    """Ask for the health by `ask`, which returns the certificate in DER; OSError for no answer."""
    if port == 0:
        return [ok(CONDITION, "the port is any free one: not tried")]
    try:
        certificate = x509.load_der_x509_certificate(ask())
    except OSError as cause:
        return [
            warning(
                CONDITION,
                f"port {port} does not answer: {cause.strerror or type(cause).__name__}",
                "azekura web does not run, or another program has the port: no DICOMweb",
            )
        ]
    left = certificate.not_valid_after_utc - clock.now()
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    hint = "Put a new certificate in the place of web.tls.certificate; it is loaded by itself"
    if left <= timedelta():
        return [error(CONDITION, f"port {port}: its certificate ended on {until}", hint)]
    if left < EXPIRES_SOON:
        return [warning(CONDITION, f"port {port}: its certificate ends on {until}", hint)]
    return [ok(CONDITION, f"port {port} answers over TLS, its certificate until {until}")]
