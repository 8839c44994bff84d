"""Certificate authorities for tests of TLS, and the PEM files of whom they certify."""

import datetime as dt
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.config.model import DicomTls

DAY = dt.timedelta(days=1)


class Authority:
    """A certificate authority and what it signed, as PEM files in one directory."""

    def __init__(self, directory, name):
        self.directory = str(directory)
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = subject(name)
        self.ca = self.write(f"{name}.pem", pem(self.sign(self.subject, self.key, is_ca=True)))

    def sign(self, of, key, *, is_ca=False):
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(of)
            .issuer_name(self.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def write(self, name, content):
        path = os.path.join(self.directory, name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(content)
        return path

    def issue(self, name, ca=None) -> DicomTls:
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return DicomTls(
            port=0,
            certificate=self.write(f"{name}.crt", pem(self.sign(subject(name), key))),
            key=self.write(f"{name}.key", private),
            ca=ca or self.ca,
        )


def subject(name):
    return x509.Name([
        x509.NameAttribute(NameOID.COMMON_NAME, name),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Hospital, A"),
    ])  # fmt: skip


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


def tls_arguments(files: DicomTls, *more):
    """Return the options by which DCMTK's tools use these files."""
    return ("+tls", files.key, files.certificate, "+cf", files.ca, *more)
