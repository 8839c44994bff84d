"""The node's own certificate: made once, renewed in time, its keys for nobody else."""

import os
import ssl
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from appliance.foundation.files import FileSystem
from appliance.web.certificate import CERTIFICATE_LIFE, RENEW_BEFORE, OwnCertificate
from tests.support.manual_clock import ManualClock

NAMES = ["localhost", "127.0.0.1", "archive.hospital.example"]


def made(folder: Path, clock: ManualClock, names: list[str] = NAMES) -> OwnCertificate:
    return OwnCertificate(FileSystem(), clock, str(folder), "site-a", names)


def read(path: str | Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(Path(path).read_bytes())


def test_the_certificate_is_of_the_authority_and_its_keys_are_private(tmp_path: Path) -> None:
    """OpenSSL takes the pair; names and addresses are in it; both keys are of mode 0600."""
    own = made(tmp_path, ManualClock())
    assert own.ensure()
    assert not own.ensure()
    authority, certificate = read(tmp_path / "ca.pem"), read(own.path)
    certificate.verify_directly_issued_by(authority)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(own.path, own.key_path)
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sorted(str(each.value) for each in found) == sorted(NAMES)
    for name in ("ca.key", "server.key"):
        assert os.stat(tmp_path / name).st_mode & 0o777 == 0o600


def test_it_is_renewed_before_its_end_by_the_same_authority(tmp_path: Path) -> None:
    """Not a day early, and a browser that trusts the authority goes on."""
    clock = ManualClock()
    made(tmp_path, clock).ensure()
    authority = (tmp_path / "ca.pem").read_bytes()
    clock.advance((CERTIFICATE_LIFE - RENEW_BEFORE - timedelta(days=1)).total_seconds())
    assert not made(tmp_path, clock).ensure()
    clock.advance(timedelta(days=2).total_seconds())
    assert made(tmp_path, clock).ensure()
    assert (tmp_path / "ca.pem").read_bytes() == authority


def test_new_names_and_damage_make_it_anew(tmp_path: Path) -> None:
    """A changed host name, a key that does not fit, an unreadable file: each is mended."""
    clock = ManualClock()
    made(tmp_path, clock).ensure()
    assert made(tmp_path, clock, [*NAMES, "192.0.2.7"]).ensure()
    (tmp_path / "server.key").write_bytes((tmp_path / "ca.key").read_bytes())
    assert made(tmp_path, clock, [*NAMES, "192.0.2.7"]).ensure()
    (tmp_path / "server.pem").write_text("")
    own = made(tmp_path, clock)
    assert own.ensure()
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(own.path, own.key_path)
