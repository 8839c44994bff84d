"""The checks of what a node has on its own: configuration, keys, disk, index, daemons, clock."""

import os
import ssl
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from appliance.config.load import loads
from appliance.config.model import Config, DicomTls, Keys
from appliance.foundation.clock import isoformat, to_microseconds
from appliance.foundation.errors import PeerRefused, PeerUnavailable
from appliance.foundation.files import FileLock, FileSystem
from appliance.health.certificate import check_certificate
from appliance.health.check import Severity
from appliance.health.configuration import check_configuration
from appliance.health.daemon_alive import check_daemon, is_held
from appliance.health.data_directory import check_data_directory
from appliance.health.dicom_port import check_dicom_port
from appliance.health.disk_space import DiskSpace, check_disk_space
from appliance.health.drill import LastDrill, check_drill
from appliance.health.flush_time import check_flush_time
from appliance.health.index import check_index
from appliance.health.keys import check_keys
from appliance.health.pending import Pending, check_pending
from appliance.health.set_aside import check_set_aside
from appliance.health.standby import check_standby
from appliance.health.uplink_status import check_uplink_status
from appliance.health.web_port import check_web_port
from appliance.index.index import Index
from appliance.seal.identity import new_identity_file
from appliance.seal.signing import SigningKey
from appliance.web.certificate import OwnCertificate
from tests.support.manual_clock import START_AT, ManualClock

GIB = 2**30
CONFIG = """
[node]
name = "site-a"
{node}
[[dicom.peers]]
ae_title = "PACS1"
addresses = ["192.0.2.10/32"]
allow = ["echo", "store"]
[cache]
capacity = "1 GiB"
[cloud]
bucket = "archive"
{cloud}
[keys]
recovery = ["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"]
"""


def config_of(node: str = "", cloud: str = 'region = "ap-northeast-1"') -> Config:
    return loads(CONFIG.format(node=node, cloud=cloud))


def severities(findings) -> list[Severity]:
    return [each.severity for each in findings]


# --- configuration and keys


def test_a_sound_configuration_is_ok(tmp_path: Path) -> None:
    path = tmp_path / "azekura.toml"
    path.touch(0o640)
    assert severities(check_configuration(str(path), config_of())) == [Severity.OK]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (config_of("demo = true"), "demo"),
        (config_of(cloud='endpoint_url = "http://s3.example.org"'), "without TLS"),
    ],
)
def test_what_is_legal_and_unwise_is_a_warning(tmp_path: Path, config: Config, word: str) -> None:
    path = tmp_path / "azekura.toml"
    path.touch(0o640)
    (found,) = check_configuration(str(path), config)
    assert found.severity is Severity.WARNING
    assert word in found.sentence


def test_a_configuration_that_others_may_write_is_a_warning_with_its_fix(tmp_path: Path) -> None:
    path = tmp_path / "azekura.toml"
    path.touch()
    path.chmod(0o666)
    (found,) = check_configuration(str(path), config_of())
    assert found.fix == f"chmod go-w {path}"
    path.chmod(0o644)
    assert severities(check_configuration(str(path), config_of())) == [Severity.OK]


def keys_in(folder: Path) -> Keys:
    return Keys(identity=str(folder / "identity"), signing=str(folder / "signing"))


def test_keys_that_are_private_are_ok_and_others_name_their_fix(tmp_path: Path) -> None:
    """The command in the finding repairs it."""
    new_identity_file(str(tmp_path / "identity"))
    SigningKey.create(str(tmp_path / "signing"))
    keys = keys_in(tmp_path)
    assert severities(check_keys(keys)) == [Severity.OK, Severity.OK]
    (tmp_path / "identity").chmod(0o640)
    identity, signing = check_keys(keys)
    assert (identity.severity, signing.severity) == (Severity.ERROR, Severity.OK)
    assert identity.fix == f"chmod 600 {tmp_path}/identity"
    assert os.system(identity.fix) == 0
    assert severities(check_keys(keys)) == [Severity.OK, Severity.OK]


def test_keys_that_are_missing_or_no_keys_are_errors(tmp_path: Path) -> None:
    (tmp_path / "signing").touch(0o600)
    assert severities(check_keys(keys_in(tmp_path))) == [Severity.ERROR, Severity.ERROR]


def test_no_finding_shows_a_secret(tmp_path: Path) -> None:
    identity = new_identity_file(str(tmp_path / "identity"))
    SigningKey.create(str(tmp_path / "signing"))
    said = repr(check_keys(keys_in(tmp_path)))
    assert "AGE-SECRET" not in said
    assert identity.secret_text() not in said


def test_a_recovery_identity_that_lies_on_the_node_is_a_warning(tmp_path: Path) -> None:
    own = new_identity_file(str(tmp_path / "identity")).recipient
    SigningKey.create(str(tmp_path / "signing"))
    keys = keys_in(tmp_path).model_copy(update={"recovery": (own,)})
    assert check_keys(keys)[0].severity is Severity.WARNING


def test_systemd_credentials_are_left_to_the_service() -> None:
    identity, signing = check_keys(Keys())
    assert identity.severity is signing.severity is Severity.OK
    assert "not looked at" in identity.sentence


# --- the disk


def test_a_data_directory_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    assert severities(check_data_directory(FileSystem(), str(tmp_path))) == [Severity.OK]
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_is_missing_is_a_warning_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "data"
    assert severities(check_data_directory(FileSystem(), str(path))) == [Severity.WARNING]
    assert not path.exists()


class FullDisk(FileSystem):
    def pwritev(self, fd, buffers, offset):
        with open("/dev/full", "wb", buffering=0) as full:
            return super().pwritev(full.fileno(), buffers, offset)


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    (found,) = check_data_directory(FullDisk(), str(tmp_path))
    assert found.severity is Severity.ERROR
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("used", "free", "expected"),
    [
        (10, 95, Severity.OK),
        (10, 90, Severity.WARNING),  # the disk is smaller than capacity and reserve
        (98, 60, Severity.WARNING),  # little is left of the capacity
        (100, 60, Severity.ERROR),  # the capacity is used up
        (10, 3, Severity.ERROR),  # the reserve is touched
    ],
)
def test_disk_space(used: int, free: int, expected: Severity) -> None:
    """Capacity 100 GiB, reserve 5 GiB."""
    space = DiskSpace(used * GIB, free * GIB, 100 * GIB, 5 * GIB)
    assert severities(check_disk_space(space)) == [expected]


class SlowDisk(FileSystem):
    """Takes that long for a flush."""

    def __init__(self, flush_s: float) -> None:
        self.flush_s = flush_s

    def fdatasync(self, fd: int) -> None:
        # An injected clock cannot stand in: what is measured is how long this call takes.
        time.sleep(self.flush_s)


class NoFlush(FileSystem):
    """Answers without doing anything."""

    def fdatasync(self, fd: int) -> None:
        pass


def test_a_slow_flush_is_a_warning_and_an_impossible_one_is_told(tmp_path: Path) -> None:
    (slow,) = check_flush_time(SlowDisk(0.11), str(tmp_path))
    assert slow.severity is Severity.WARNING
    (lying,) = check_flush_time(NoFlush(), str(tmp_path))
    assert lying.severity is Severity.OK
    assert "power cut" in lying.hint
    (usual,) = check_flush_time(SlowDisk(0.001), str(tmp_path))
    assert (usual.severity, usual.hint) == (Severity.OK, "")
    assert list(tmp_path.iterdir()) == []


def test_set_aside_files_are_counted(tmp_path: Path) -> None:
    assert severities(check_set_aside(str(tmp_path / "none"))) == [Severity.OK]
    assert severities(check_set_aside(str(tmp_path))) == [Severity.OK]
    (tmp_path / "x.0.tail").write_bytes(bytes(2048))
    (found,) = check_set_aside(str(tmp_path))
    assert found.severity is Severity.WARNING
    assert "1 files, 2.0 KiB" in found.sentence


def test_a_damaged_pack_counts_until_its_like_is_back(tmp_path: Path) -> None:
    (tmp_path / "a.1.damaged.tar").write_bytes(bytes(1024))
    (tmp_path / "a.1.damaged.json").write_text('{"replaced_at_us": 0}')
    (found,) = check_set_aside(str(tmp_path))
    assert (found.severity, "1 files, 1.0 KiB" in found.sentence) == (Severity.WARNING, True)
    (tmp_path / "a.1.damaged.json").write_text('{"replaced_at_us": 5}')
    assert severities(check_set_aside(str(tmp_path))) == [Severity.OK]


# --- index and daemons


def test_an_index_that_opens_is_ok_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    directory = str(tmp_path / "index")
    assert severities(check_index(FileSystem(), directory)) == [Severity.WARNING]
    index = Index(FileSystem(), directory).open()
    name = index.generation
    index.close()
    assert severities(check_index(FileSystem(), directory)) == [Severity.OK]
    noted = {"sentence": "it is being made anew", "hint": "wait"}
    (found,) = check_index(FileSystem(), directory, noted)
    assert (found.severity, found.sentence) == (Severity.ERROR, "it is being made anew")
    data = Path(directory, name, "data.mdb")
    data.write_bytes(b"\xff" * data.stat().st_size)
    (found,) = check_index(FileSystem(), directory)
    assert found.severity is Severity.ERROR
    assert found.fix == "azekura rebuild-index"


def test_a_daemon_lives_as_long_as_its_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    assert severities(check_daemon("uplink", "azekura uplink", path, "x")) == [Severity.ERROR]
    assert not os.path.exists(path)
    lock = FileLock(path)
    lock.acquire()
    assert severities(check_daemon("uplink", "azekura uplink", path, "x")) == [Severity.OK]
    lock.release()
    assert not is_held(path)
    lock.acquire()  # looking left it free
    lock.release()


def test_the_uplinks_last_word() -> None:
    clock = ManualClock()
    now_s = START_AT.timestamp()
    stale = {"condition": "cloud", "sentence": "old news", "hint": ""}
    assert severities(check_uplink_status(clock, None, "", ())) == [Severity.ERROR]
    assert severities(check_uplink_status(clock, now_s - 3, "up", ())) == [Severity.OK]
    assert severities(check_uplink_status(clock, now_s - 3, "down", ())) == [Severity.ERROR]
    assert severities(check_uplink_status(clock, now_s - 3, "degraded", ())) == [Severity.WARNING]
    (old,) = check_uplink_status(clock, now_s - 60, "up", (stale,))
    assert old.severity is Severity.ERROR
    assert "1 min 00 s ago" in old.sentence


def test_a_problem_of_the_uplink_is_a_finding_without_the_packs_name() -> None:
    clock = ManualClock()
    problem = {"condition": "pack:01jd2m6yt0v9rk3sa5xw7hq4ze", "sentence": "damaged", "hint": "ask"}
    (found,) = check_uplink_status(clock, START_AT.timestamp(), "up", (problem,))
    assert (found.condition, found.sentence, found.hint) == ("uplink_pack", "damaged", "ask")


@pytest.mark.parametrize(
    ("age_s", "size", "expected"),
    [
        (60, 1, Severity.OK),
        (25 * 3600, 1, Severity.WARNING),
        (8 * 86400, 1, Severity.ERROR),
        (60, 60, Severity.WARNING),
        (60, 90, Severity.ERROR),
    ],
)
def test_pending(age_s: float, size: int, expected: Severity) -> None:
    """Of a cache of 100 GiB."""
    clock = ManualClock()
    oldest_us = to_microseconds(START_AT) - int(age_s * 1e6)
    pending = Pending(7, size * GIB, oldest_us, 100 * GIB)
    assert severities(check_pending(clock, pending)) == [expected]
    assert severities(check_pending(clock, Pending(0, 0, 0, 100 * GIB))) == [Severity.OK]


def test_the_dicom_port() -> None:
    """A rejection is an answer of a DICOM node; silence is not."""

    def raising(error):
        def echo():
            raise error

        return echo

    assert severities(check_dicom_port(11112, lambda: None)) == [Severity.OK]
    assert severities(check_dicom_port(0, raising(AssertionError()))) == [Severity.OK]
    refused = PeerRefused("associate", "AZEKURA", "rejected: calling title not recognised")
    assert severities(check_dicom_port(11112, raising(refused))) == [Severity.OK]
    silent = PeerUnavailable("connect", "127.0.0.1:11112", "Connection refused")
    (found,) = check_dicom_port(11112, raising(silent))
    assert found.severity is Severity.ERROR
    assert "Connection refused" in found.sentence


def test_the_web_port(tmp_path: Path) -> None:
    """No answer is a warning, an expired certificate an error, one that ends soon a warning."""
    clock = ManualClock()
    own = OwnCertificate(FileSystem(), clock, str(tmp_path), "site-a", ["localhost"])
    own.ensure()
    der = ssl.PEM_cert_to_DER_cert(Path(own.path).read_text())

    def silent() -> bytes:
        raise ConnectionRefusedError(111, "Connection refused")

    assert severities(check_web_port(clock, 0, silent)) == [Severity.OK]
    (found,) = check_web_port(clock, 8443, silent)
    assert found.severity is Severity.WARNING
    assert "Connection refused" in found.sentence
    assert severities(check_web_port(clock, 8443, lambda: der)) == [Severity.OK]
    clock.advance(385 * 86400)
    assert severities(check_web_port(clock, 8443, lambda: der)) == [Severity.WARNING]
    clock.advance(20 * 86400)
    assert severities(check_web_port(clock, 8443, lambda: der)) == [Severity.ERROR]


# --- TLS


def tls_files(folder: Path, *, first_day: int, last_day: int) -> DicomTls:
    """Write a certificate valid between those days from START_AT, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "azekura")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(START_AT + timedelta(days=first_day))
        .not_valid_after(START_AT + timedelta(days=last_day))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    (folder / "certificate.pem").write_bytes(pem)
    (folder / "ca.pem").write_bytes(pem)
    (folder / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (folder / "key.pem").chmod(0o600)
    return DicomTls(
        certificate=str(folder / "certificate.pem"),
        key=str(folder / "key.pem"),
        ca=str(folder / "ca.pem"),
    )


@pytest.mark.parametrize(
    ("first_day", "last_day", "expected"),
    [
        (-10, 300, [Severity.OK]),
        (-10, 20, [Severity.WARNING] * 2),  # the node's own, and the authority's
        (-10, -1, [Severity.ERROR] * 2),
        (1, 300, [Severity.ERROR] * 2),
    ],
)
def test_a_certificate_is_judged_by_its_days(
    tmp_path: Path, first_day: int, last_day: int, expected: list[Severity]
) -> None:
    tls = tls_files(tmp_path, first_day=first_day, last_day=last_day)
    assert severities(check_certificate(ManualClock(), tls)) == expected


def test_a_certificate_of_another_key_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    tls = tls_files(tmp_path, first_day=-10, last_day=300)
    other = tls_files(tmp_path / "other", first_day=-10, last_day=300)
    mixed = tls.model_copy(update={"key": other.key})
    assert severities(check_certificate(ManualClock(), mixed)) == [Severity.ERROR]


def test_a_certificate_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    tls = tls_files(tmp_path, first_day=-10, last_day=300)
    os.unlink(tls.ca)
    assert severities(check_certificate(ManualClock(), tls)) == [Severity.ERROR]


@pytest.mark.parametrize(
    ("days", "last", "severity"),
    [
        (1, None, Severity.OK),
        (40, None, Severity.WARNING),
        (1, LastDrill(isoformat(START_AT), "node age1x", 50, 50, 0), Severity.OK),
        (40, LastDrill(isoformat(START_AT), "node age1x", 50, 50, 0), Severity.WARNING),
        (1, LastDrill(isoformat(START_AT), "node age1x", 50, 50, 1), Severity.ERROR),
        (1, LastDrill(isoformat(START_AT), "node age1x", 50, 49, 0), Severity.ERROR),
    ],
)
def test_a_drill_is_clean_and_not_long_ago(
    days: int, last: LastDrill | None, severity: Severity
) -> None:
    clock = ManualClock()
    clock.advance(days * 86400.0)
    (finding,) = check_drill(clock, 30 * 86400.0, isoformat(START_AT), last)
    assert finding.severity is severity
    assert finding.fix == (None if severity is Severity.OK else "azekura drill")


def test_a_new_node_owes_no_drill() -> None:
    (finding,) = check_drill(ManualClock(), 86400.0, "", None)
    assert finding.severity is Severity.OK


# --- the standby


def site(state: str, node: str = "site-a") -> dict[str, object]:
    return {"node": node, "state": state, "since": "2026-03-02T03:00:00.000000Z"}


def place(applied: int, last: int) -> dict[str, object]:
    return {"node": "site-a", "applied_sequence": applied, "last_sequence": last}


@pytest.mark.parametrize(
    ("nodes", "following", "refusal", "severity", "words"),
    [
        ([site("alive")], [place(9, 9)], None, Severity.OK, "the place of site-a; it takes new"),
        ([site("alive")], [place(9, 9)], "no site is silent", Severity.OK, "no site is silent"),
        ([], [], None, Severity.WARNING, "nothing is known"),
        ([site("unknown")], [], None, Severity.WARNING, "nothing is heard of site-a"),
        ([site("silent")], [], None, Severity.WARNING, "silent since 2026-03-02"),
        ([site("alive")], [place(1, 900)], None, Severity.WARNING, "899 entries"),
        ([site("retired")], [place(9, 9)], None, Severity.OK, "site-a"),
    ],
)
def test_a_standby_says_whether_it_could_take_a_sites_place(
    nodes: list, following: list, refusal: str | None, severity: Severity, words: str
) -> None:
    (found,) = check_standby(nodes, following, refusal, "when-silent")
    assert found.severity is severity
    assert words in found.sentence


def test_signers_without_recipients_are_a_warning(tmp_path: Path) -> None:
    """A standby that follows and can read nothing is found before the disaster."""
    path = tmp_path / "azekura.toml"
    path.touch(0o640)
    config = config_of()
    keys = config.keys.model_copy(update={"signers": {"cloud": ("azekura-sign1q",)}})
    (found,) = check_configuration(str(path), config.model_copy(update={"keys": keys}))
    assert (found.severity, "cloud" in found.sentence) == (Severity.WARNING, True)
