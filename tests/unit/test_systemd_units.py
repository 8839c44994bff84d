"""The units are what systemd takes, are sealed tightly, and do not take each other down."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.config.load import loads
from appliance.remote.s3_client import CREDENTIAL_NAME
from appliance.seal.signing import SigningKey

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNITS = SYSTEMD / "units"
DAEMONS = ("receive", "uplink", "web")
EXPOSURE_MAX = 2.0
ANALYZE = shutil.which("systemd-analyze")
# systemd 252 (Debian 12) does not know it and goes on; what it brings there LoadCredential= does.
NEWER = "Unknown key 'ImportCredential' in section [Service], ignoring."

needs_analyze = pytest.mark.skipif(
    ANALYZE is None, reason="NOT VERIFIED: systemd-analyze is missing; install Debian's systemd"
)


def settings(name: str) -> dict[str, dict[str, list[str]]]:
    """Return section → key → every value of a unit."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return found


def staged(tmp_path: Path) -> Path:
    """Return a folder of the units whose program is one that is here."""
    for path in UNITS.iterdir():
        text = path.read_text().replace("/opt/azekura/bin/azekura", "/bin/true")
        (tmp_path / path.name).write_text(text)
    return tmp_path


@needs_analyze
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    """A misspelt key is ignored by systemd, and the sandbox is open in the night."""
    folder = staged(tmp_path)
    ran = subprocess.run(
        [ANALYZE, "verify", "--man=no", *sorted(map(str, folder.iterdir()))],
        capture_output=True, text=True, timeout=110, check=False,
        env={"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    said = [line for line in ran.stderr.splitlines() if NEWER not in line]
    assert [line for line in said if "azekura" in line] == []
    assert ran.returncode == 0, ran.stderr


@needs_analyze
@pytest.mark.parametrize("daemon", DAEMONS)
def test_the_sandbox_is_tight(daemon: str, tmp_path: Path) -> None:
    """systemd's own measure of what an intruder could do."""
    ran = subprocess.run(
        [ANALYZE, "security", "--no-pager", "--offline=yes",
         str(staged(tmp_path) / f"azekura-{daemon}.service")],
        capture_output=True, text=True, timeout=110, check=True,
    )  # fmt: skip
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", ran.stdout)
    assert exposure is not None, ran.stdout
    assert float(exposure[1]) <= EXPOSURE_MAX


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_daemon_is_supervised_and_stands_alone(daemon: str) -> None:
    """None needs another one, each comes back by itself, and a hang is noticed."""
    unit = settings(f"azekura-{daemon}.service")
    service = unit["Service"]
    assert service["Type"] == ["notify"]
    assert service["User"] == [f"azekura-{daemon}"]
    assert service["Group"] == ["azekura"]
    assert service["UMask"] == ["0007"]
    assert service["Restart"] == ["always"]
    assert 0 < int(service["RestartSec"][0].removesuffix("s")) <= 10
    assert int(service["WatchdogSec"][0].removesuffix("s")) <= 60
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"]
    hard = {"Requires", "Requisite", "BindsTo", "Conflicts", "OnFailure", "Upholds"}
    assert not hard & set(unit["Unit"])
    assert unit["Unit"]["PartOf"] == ["azekura.target"]
    assert not re.search(r"azekura-\w+\.service", " ".join(unit["Unit"]["After"]))


def test_every_daemon_gets_its_keys_and_no_other() -> None:
    """The key that signs the ledger is the uplink's alone."""
    given = {
        daemon: set(settings(f"azekura-{daemon}.service")["Service"]["LoadCredential"])
        for daemon in DAEMONS
    }
    assert given == {
        "receive": {"azekura-identity", CREDENTIAL_NAME, "azekura-dicom-key"},
        "uplink": {"azekura-identity", CREDENTIAL_NAME, "azekura-signing"},
        "web": {"azekura-identity", CREDENTIAL_NAME, "azekura-web-key"},
    }
    for daemon in DAEMONS:
        service = settings(f"azekura-{daemon}.service")["Service"]
        assert set(service["ImportCredential"]) == given[daemon]


def test_the_socket_opens_what_the_configuration_defaults_to() -> None:
    """Without a drop-in the receiver takes over exactly this socket."""
    dicom = loads((SYSTEMD / "examples" / "appliance.toml").read_text()).dicom
    streams = settings("azekura-receive.socket")["Socket"]["ListenStream"]
    assert streams == [f"{dicom.host}:{dicom.port}"]


def test_the_examples_are_sound(tmp_path: Path) -> None:
    """The standby's with a site's line put in: without one it follows nobody."""
    appliance = loads((SYSTEMD / "examples" / "appliance.toml").read_text())
    public = SigningKey.create(str(tmp_path / "key")).public_text
    text = (SYSTEMD / "examples" / "standby.toml").read_text()
    standby = loads(text.replace('# site-a = "azekura-sign1…"', f'site-a = "{public}"'))
    assert (appliance.node.role, standby.node.role) == ("appliance", "standby")
    for config in (appliance, standby):
        assert config.keys.identity == "credential:azekura-identity"
        assert config.keys.signing == "credential:azekura-signing"


def test_every_user_of_a_unit_is_made() -> None:
    """In the group that they share, which no package may have made before."""
    text = (SYSTEMD / "sysusers.d" / "azekura.conf").read_text()
    assert re.findall(r"^u (\S+) -:azekura ", text, re.MULTILINE) == [
        f"azekura-{daemon}" for daemon in DAEMONS
    ]
    assert re.search(r"^g azekura ", text, re.MULTILINE)


WRITE_AS_A_DAEMON = """
import os, sys
from appliance.archive.layout import Layout
from appliance.foundation.files import FileSystem

forbidden = []
def listen(event, arguments):
    if event == "os.mkdir" and arguments[1] & 0o6000:
        forbidden.append(arguments)
sys.addaudithook(listen)
os.umask(0o007)
Layout(sys.argv[1]).create(FileSystem())
assert not forbidden, forbidden
"""


def test_folders_are_the_groups_though_the_sandbox_forbids_to_say_so(tmp_path: Path) -> None:
    """RestrictSUIDSGID= refuses a mkdir that asks for the bit; a folder inherits it."""
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o2770)
    subprocess.run([sys.executable, "-c", WRITE_AS_A_DAEMON, str(data)], check=True, timeout=110)
    modes = {path: path.stat().st_mode & 0o7777 for path in data.rglob("*")}
    assert len(modes) > 10
    assert set(modes.values()) == {0o2770}
