"""`azekura key`: files of mode 0600, public halves on the terminal, and never a secret."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.cli import exit_codes, main
from tests.unit.test_cli_frame import DEMO


def test_key_new_writes_a_private_file_that_age_reads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "recovery.key"
    assert main.run(["key", "new", str(path)]) == exit_codes.OK
    recipient = capsys.readouterr().out.strip()
    assert path.stat().st_mode & 0o777 == 0o600
    assert "AGE-SECRET-KEY" not in recipient
    keygen = shutil.which("age-keygen")
    assert keygen, "install age"
    ran = subprocess.run([keygen, "-y", path], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == recipient


def test_key_new_never_overwrites(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert main.run(["key", "new", str(path)]) == exit_codes.OK
    before = path.read_bytes()
    assert main.run(["key", "new", str(path)]) == exit_codes.FAULT
    assert main.run(["key", "new", "--signing", str(path)]) == exit_codes.FAULT
    assert path.read_bytes() == before
    assert "never overwritten" in capsys.readouterr().err


def test_key_recipient_is_that_of_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "key")
    main.run(["key", "new", path])
    made = capsys.readouterr().out
    assert main.run(["key", "recipient", path]) == exit_codes.OK
    assert capsys.readouterr().out == made


def test_key_recipient_refuses_a_file_that_others_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "key")
    main.run(["key", "new", path])
    os.chmod(path, 0o644)
    assert main.run(["key", "recipient", path]) == exit_codes.FAULT
    assert "chmod 600" in capsys.readouterr().err


def test_key_list_names_every_use_and_no_secret(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = {}
    for name, options in (("identity", []), ("signing", ["--signing"]), ("recovery", [])):
        main.run(["key", "new", *options, str(tmp_path / name)])
        made[name] = capsys.readouterr().out.strip()
    config = tmp_path / "azekura.toml"
    config.write_text(DEMO.format(folder=tmp_path) + f'recovery = ["{made["recovery"]}"]\n')
    assert main.run(["key", "list", "--json", "--config", str(config)]) == exit_codes.OK
    said = capsys.readouterr().out
    assert {row["use"]: row["public"] for row in json.loads(said)} == made
    assert "SECRET" not in said.upper()
