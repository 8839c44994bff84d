"""The node's own authority and server certificate, for a hospital that brings none.

Owns `state/web/`: `ca.pem` and `server.pem`, and their keys of mode 0600. Invariants:
- The authority stays the same over renewals of the certificate: a browser trusts it once.
- A certificate is renewed RENEW_BEFORE before its end, and when the node's names have changed.
- What a crash leaves is at worst a key whose certificate does not fit: then both are made anew.
"""

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.foundation.clock import Clock
from appliance.foundation.files import FileSystem

AUTHORITY_LIFE = timedelta(days=3650)
CERTIFICATE_LIFE = timedelta(days=397)
RENEW_BEFORE = timedelta(days=30)
BACKDATED = timedelta(hours=1)
NAMES_MAX = 64
_SIOCGIFADDR = 0x8915

_Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


class OwnCertificate:
    """Makes and renews the pair of files; used by one thread at a time."""

    def __init__(
        self, files: FileSystem, clock: Clock, directory: str, node: str, names: Sequence[str]
    ) -> None:
        """`names`: host names and addresses for which the certificate is to hold."""
        self._files = files
        self._clock = clock
        self._directory = directory
        self._node = node
        self._names = list(dict.fromkeys(names))[:NAMES_MAX]
        self.path = os.path.join(directory, "server.pem")
        self.key_path = os.path.join(directory, "server.key")

    def ensure(self) -> bool:
        """Make or renew what is missing or due; return whether the certificate is a new one."""
        now = self._clock.now()
        authority = self._load("ca")
        if authority is None or _ends(authority) - now < CERTIFICATE_LIFE:
            authority = self._make_authority(now)
        found = self._load("server")
        if (
            found is not None
            and _ends(found) - now > RENEW_BEFORE
            and found[0].issuer == authority[0].subject
            and _is_signed_by(found[0], authority[0])
            and _names_in(found[0]) == sorted(self._names)
        ):
            return False
        self._make_certificate(authority, now)
        return True

    def _load(self, name: str) -> _Pair | None:
        """Return certificate and key, None when they are missing or do not belong together."""
        try:
            with open(os.path.join(self._directory, f"{name}.pem"), "rb") as file:
                certificate = x509.load_pem_x509_certificate(file.read())
            with open(os.path.join(self._directory, f"{name}.key"), "rb") as file:
                key = serialization.load_pem_private_key(file.read(), None)
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            return None
        return (certificate, key) if certificate.public_key() == key.public_key() else None

    def _make_authority(self, now: datetime) -> _Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(f"Azekura {self._node} authority")
        certificate = (
            _builder(subject, subject, key, now, AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return self._write("ca", certificate, key)

    def _make_certificate(self, authority: _Pair, now: datetime) -> None:
        issuer, issuer_key = authority
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(self._node), issuer.subject, key, now, CERTIFICATE_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in self._names]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
                critical=False,
            )
            .sign(issuer_key, hashes.SHA256())
        )
        self._write("server", certificate, key)

    def _write(
        self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> _Pair:
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path = os.path.join(self._directory, name)
        self._files.write_atomic(f"{path}.key", secret, 0o600)
        public = certificate.public_bytes(serialization.Encoding.PEM)
        self._files.write_atomic(f"{path}.pem", public, 0o644)
        return certificate, key


def own_names(host: str, further: Iterable[str]) -> list[str]:
    """Return the names and addresses of this machine, the configured ones, and loopback."""
    names = [*further, socket.gethostname(), socket.getfqdn(), "localhost", "127.0.0.1", "::1"]
    with contextlib.suppress(ValueError):
        if not ipaddress.ip_address(host).is_unspecified:
            names.append(host)
    names += _interface_addresses()
    return [name for name in dict.fromkeys(names) if _is_usable(name)]


def _interface_addresses() -> Iterator[str]:
    """Yield the IPv4 address of every network interface that has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, interface in socket.if_nameindex():
            request = struct.pack("256s", interface.encode()[:15])
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, request)
                yield socket.inet_ntoa(answer[20:24])


def _is_usable(name: str) -> bool:
    try:
        _general_name(name)
    except ValueError:
        return False
    return bool(name)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_in(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return sorted(str(each.value) for each in found)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _ends(pair: _Pair) -> datetime:
    return pair[0].not_valid_after_utc


def _is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is made anew
        return False
    return True
