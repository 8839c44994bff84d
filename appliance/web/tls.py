"""TLS of the web daemon: one context for every connection, and its certificate kept fresh.

Owns the context. Must not touch sockets. Invariants:
- Nothing below TLS 1.2, no cipher without forward secrecy and authenticated encryption.
- A client's certificate is asked for only where `web.client_ca` says who signs them; one that is
  shown and not of them ends the handshake.
"""

import os
import ssl

from cryptography import x509
from cryptography.x509.oid import NameOID

from appliance.config.model import Config
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.errors import AzekuraError, ConfigurationError, KeyUnavailable
from appliance.foundation.files import FileSystem
from appliance.seal.secret import read_secret
from appliance.web.certificate import OwnCertificate, own_names

LOOK_S = 60.0

# RFC 9325 section 4.2, and what OpenSSL calls these; TLS 1.3 has its own list
_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)

_log = log.get("web")


class ServerTls:
    """The context, and what it was loaded from; `refresh` is called by one thread."""

    def __init__(self, config: Config, files: FileSystem, clock: Clock, directory: str) -> None:
        """ConfigurationError or KeyUnavailable when the hospital's files can't be used."""
        web = config.web
        self._clock = clock
        self._configured = web.tls
        self._own = OwnCertificate(
            files, clock, directory, config.node.name, own_names(web.host, web.names)
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_ciphers(":".join(_CIPHERS))
        self.context.set_alpn_protocols(["http/1.1"])
        self.context.options |= (
            ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
        )
        if web.client_ca is not None:
            self.context.verify_mode = ssl.CERT_OPTIONAL
            try:
                self.context.load_verify_locations(web.client_ca)
            except OSError as cause:
                raise ConfigurationError(
                    "web.client_ca", (f"{web.client_ca} holds no certificates: {cause}",)
                ) from cause
        self._own.ensure()
        self._load()
        self._looked_s = clock.monotonic_s()
        self._stamp = self._look()

    def refresh(self) -> None:
        """Renew our certificate when it is due; load the hospital's when its file has changed.

        New handshakes get it; open connections go on.
        """
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        try:
            if self._configured is None:
                if self._own.ensure():
                    self._load()
                    _log.info("web_certificate_renewed")
                return
            stamp = self._look()
            if stamp != self._stamp:
                self._load()
                self._stamp = stamp
                _log.info("web_certificate_loaded")
        except AzekuraError as error:
            _log.error("web_certificate_not_renewed", error=type(error).__name__, cause=error.cause)

    def _look(self) -> float:
        try:
            return os.stat(self._configured.certificate).st_mtime if self._configured else 0.0
        except OSError:
            return 0.0

    def _load(self) -> None:
        certificate = self._configured.certificate if self._configured else self._own.path
        source = self._configured.key if self._configured else self._own.key_path
        key = read_secret(source, "the TLS key")
        # OpenSSL takes a key by its path only, and a credential may not be copied to a disk
        fd = os.memfd_create("web-key", os.MFD_CLOEXEC)
        try:
            os.write(fd, key)
            self.context.load_cert_chain(
                certificate, f"/proc/self/fd/{fd}", password=lambda: b""
            )  # without a callback OpenSSL would ask for a passphrase on the terminal
        except OSError as cause:
            raise KeyUnavailable(
                "load the web certificate and key", f"{certificate}, {source}", str(cause),
                "Both must be PEM, belong together, and the key must carry no passphrase",
            ) from cause  # fmt: skip
        finally:
            os.close(fd)


def common_name(certificate: bytes) -> str:
    """Return the common name of a certificate in DER, "" where it has none."""
    subject = x509.load_der_x509_certificate(certificate).subject
    found = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""
