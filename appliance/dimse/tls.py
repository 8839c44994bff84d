"""TLS for DICOM: the BCP 195 profile of PS3.15 B.12, mutual, for both ends.

Owns the two contexts. Must not touch sockets.

Invariants:
- Nothing below TLS 1.2, no cipher without forward secrecy and authenticated encryption.
- Both ends show a certificate of an authority in `dicom.tls.ca`.
- Host names are not compared: DICOM nodes are known by address and AE title, their certificates
  rarely carry either. Whoever holds a certificate of that authority is trusted.
"""

import os
import ssl

from cryptography import x509

from appliance.config.model import DicomTls
from appliance.foundation.errors import ConfigurationError, KeyUnavailable
from appliance.seal.secret import read_secret

# RFC 9325 section 4.2, and what OpenSSL calls these; TLS 1.3 has its own list
_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)


def server_context(tls: DicomTls) -> ssl.SSLContext:
    """Return the context of the listener; ConfigurationError or KeyUnavailable."""
    return _context(tls, ssl.PROTOCOL_TLS_SERVER)


def client_context(tls: DicomTls) -> ssl.SSLContext:
    """Return the context for peers that we call; ConfigurationError or KeyUnavailable."""
    return _context(tls, ssl.PROTOCOL_TLS_CLIENT)


def _context(tls: DicomTls, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(_CIPHERS))
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_verify_locations(tls.ca)
    except OSError as cause:  # ssl.SSLError is one
        raise ConfigurationError(
            "dicom.tls", (f"ca: {tls.ca} holds no certificates that can be read: {cause}",)
        ) from cause
    _load_own(context, tls)
    return context


def _load_own(context: ssl.SSLContext, tls: DicomTls) -> None:
    key = read_secret(tls.key, "read the TLS key")
    # OpenSSL takes a key by its path only, and a credential may not be copied to a disk
    fd = os.memfd_create("tls-key", os.MFD_CLOEXEC)
    try:
        os.write(fd, key)
        # without a callback OpenSSL would ask for a passphrase on the terminal
        context.load_cert_chain(tls.certificate, f"/proc/self/fd/{fd}", password=lambda: b"")
    except OSError as cause:
        raise KeyUnavailable(
            "load the TLS certificate and key",
            f"{tls.certificate}, {tls.key}",
            str(cause),
            "Both must be PEM, belong together, and the key must carry no passphrase",
        ) from cause
    finally:
        os.close(fd)


def peer_subject(sock: ssl.SSLSocket) -> str:
    """Return the subject of the peer's certificate as an RFC 4514 string."""
    certificate = sock.getpeercert(binary_form=True)
    if certificate is None:
        return ""
    return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
