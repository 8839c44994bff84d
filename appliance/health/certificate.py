"""Whether the certificate of DICOM TLS is valid, for how long yet, and fits its key."""

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from appliance.config.model import DicomTls
from appliance.foundation.clock import Clock
from appliance.foundation.errors import KeyUnavailable
from appliance.health.check import Finding, Findings, error, failed, ok, warning
from appliance.seal.secret import read_secret

CONDITION = "tls_certificate"
EXPIRES_SOON = timedelta(days=30)
_CREDENTIAL = "credential:"


def check_certificate(clock: Clock, tls: DicomTls) -> Findings:
    """Look at this node's certificate, its key, and the authorities of the peers."""
    try:
        own = _certificates(tls.certificate)
        authorities = _certificates(tls.ca)
    except (OSError, ValueError) as cause:
        return [
            error(
                CONDITION,
                f"the certificates can't be read: {cause}",
                "dicom.tls.certificate and dicom.tls.ca must be PEM files that the daemons may "
                "read",
            )
        ]
    now = clock.now()
    found = [
        _validity(now, certificate, what)
        for certificate, what in (
            (own[0], "this node's certificate"),
            *((each, "an authority of the peers") for each in authorities),
        )
    ]
    wrong = [finding for finding in found if finding is not None]
    wrong += _key(tls, own[0])
    if wrong:
        return wrong
    left = own[0].not_valid_after_utc - now
    return [ok(CONDITION, f"valid for {left.days} days more, and fits its key")]


def _certificates(path: str) -> list[x509.Certificate]:
    with open(path, "rb") as file:
        return x509.load_pem_x509_certificates(file.read())


def _validity(now: datetime, certificate: x509.Certificate, what: str) -> Finding | None:
    subject = certificate.subject.rfc4514_string()
    if now < certificate.not_valid_before_utc:
        return error(
            CONDITION,
            f"{what}, {subject}, is valid only from {certificate.not_valid_before_utc:%Y-%m-%d}",
            "Check the clock; peers refuse it until then",
        )
    left = certificate.not_valid_after_utc - now
    day = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    if left <= timedelta():
        return error(
            CONDITION,
            f"{what}, {subject}, expired on {day}",
            "Peers refuse TLS associations: renew it, then restart azekura receive",
        )
    if left < EXPIRES_SOON:
        return warning(
            CONDITION,
            f"{what}, {subject}, expires on {day}",
            "Renew it, then restart azekura receive",
        )
    return None


def _key(tls: DicomTls, certificate: x509.Certificate) -> Findings:
    if tls.key.startswith(_CREDENTIAL):
        return []  # readable only inside the service
    try:
        key = load_pem_private_key(read_secret(tls.key, "TLS key"), None)
    except KeyUnavailable as cause:
        return [failed(CONDITION, cause)]
    except (ValueError, TypeError) as cause:
        return [error(CONDITION, f"{tls.key} is no key: {cause}", "It must be PEM, unencrypted")]
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        return [
            error(
                CONDITION,
                "the certificate is not that of the key",
                "dicom.tls.certificate and dicom.tls.key must belong together",
            )
        ]
    return []
