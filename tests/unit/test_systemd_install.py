"""`systemd/install` lays out a server, twice with the same result, and keeps what is the site's."""

import os
import stat
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "systemd" / "install"
PORTS = """
[node]
data_dir = "/srv/archive"
[dicom]
host = "192.0.2.1"
port = 104
[dicom.tls]
port = 2762
"""


def install(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(INSTALL), "--no-pip", "--root", str(root), *options],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def tree(root: Path) -> dict[str, tuple[str, int, bytes]]:
    """Return path → mode, time of the last change, content."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.stat()
        content = path.read_bytes() if path.is_file() else b""
        changed_ns = status.st_mtime_ns if path.is_file() else 0
        found[str(path.relative_to(root))] = (stat.filemode(status.st_mode), changed_ns, content)
    return found


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    """Not even the time of a file: nothing is written, so nothing is restarted."""
    first = install(tmp_path)
    assert first.returncode == 0, first.stderr
    before = tree(tmp_path)
    second = install(tmp_path)
    assert second.returncode == 0, second.stderr
    assert second.stderr == "install: nothing to do: all is as it should be\n"
    assert tree(tmp_path) == before


def test_what_is_laid_out(tmp_path: Path) -> None:
    """Each unit as it is here; the data for the group, the keys for root alone."""
    assert install(tmp_path, "--standby").returncode == 0
    found = tree(tmp_path)
    for unit in (ROOT / "systemd" / "units").iterdir():
        mode, _, content = found[f"usr/local/lib/systemd/system/{unit.name}"]
        assert (mode, content) == ("-rw-r--r--", unit.read_bytes())
    assert found["var/lib/azekura"][0] == "drwxrws---"
    assert found["etc/credstore"][0] == "drwx------"
    assert found["etc/azekura"][0] == "drwxr-x---"
    assert found["usr/local/bin/azekura"][0] == "-rwxr-xr-x"
    assert b'role = "standby"' in found["etc/azekura/azekura.toml.example"][2]
    assert "etc/azekura/azekura.toml" not in found


def test_ports_and_folder_follow_the_configuration(tmp_path: Path) -> None:
    """systemd opens what the receiver is configured to; back to the defaults leaves nothing."""
    configuration = tmp_path / "etc" / "azekura" / "azekura.toml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(PORTS)
    assert install(tmp_path).returncode == 0
    system = tmp_path / "etc" / "systemd" / "system"
    socket = (system / "azekura-receive.socket.d" / "50-configuration.conf").read_text()
    assert socket.splitlines()[-3:] == [
        "ListenStream=", "ListenStream=192.0.2.1:104", "ListenStream=192.0.2.1:2762",
    ]  # fmt: skip
    service = system / "azekura-.service.d" / "50-configuration.conf"
    assert "ReadWritePaths=/srv/archive" in service.read_text().splitlines()
    configuration.write_text('[node]\nname = "a"\n')
    assert install(tmp_path).returncode == 0
    assert not service.exists()


def test_a_broken_configuration_is_said(tmp_path: Path) -> None:
    """With the status that every command has for it."""
    configuration = tmp_path / "etc" / "azekura" / "azekura.toml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("[node\n")
    assert install(tmp_path).returncode == 78


def test_uninstall_keeps_what_cannot_be_had_again(tmp_path: Path) -> None:
    """Data, keys and configuration stay to the byte; of the rest no file is left."""
    assert install(tmp_path).returncode == 0
    kept = {
        "var/lib/azekura/packs/sealed/a.tar": b"a pack",
        "etc/credstore/azekura-identity": b"a key",
        "etc/azekura/azekura.toml": b'[node]\nname = "a"\n',
    }
    for name, content in kept.items():
        os.makedirs(tmp_path / os.path.dirname(name), exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert install(tmp_path).returncode == 0
    assert install(tmp_path, "--uninstall").returncode == 0
    left = {name: content for name, (mode, _, content) in tree(tmp_path).items() if mode[0] == "-"}
    assert left == kept


def test_an_environment_is_not_put_below_a_root(tmp_path: Path) -> None:
    """It carries its own path, and would look for itself in the wrong place."""
    ran = subprocess.run(
        [str(INSTALL), "--root", str(tmp_path)],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert list(tmp_path.iterdir()) == []
