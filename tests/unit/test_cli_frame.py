"""The frame of the command line: options anywhere, exit codes, errors as sentences or JSON."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from appliance.cli import exit_codes, main, output
from appliance.config.load import loads
from appliance.foundation import errors

DEMO = """
[node]
name = "site-a"
demo = true
[cache]
capacity = "1 GiB"
[cloud]
bucket = "archive"
endpoint_url = "http://127.0.0.1:8333"
[keys]
identity = "{folder}/identity"
signing = "{folder}/signing"
"""


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "azekura.toml"
    path.write_text(DEMO.format(folder=tmp_path))
    return str(path)


def test_help_loads_nothing_that_only_a_command_needs() -> None:
    """The time that `--help` takes is the modules it loads."""
    heavy = ("pydantic", "rich", "boto3", "pynetdicom", "pydicom", "numpy", "lmdb", "cryptography")
    code = (
        "import sys; from appliance.cli import main\n"
        "assert main.run(['--help']) == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stderr.strip() == "[]"
    assert "config" in ran.stdout


def test_global_options_stand_anywhere(
    capsys: pytest.CaptureFixture[str], config_file: str
) -> None:
    for line in (
        ["--config", config_file, "--json", "config", "show"],
        ["config", "show", "--json", f"--config={config_file}"],
        ["config", "--config", config_file, "show", "--json"],
    ):
        assert main.run(line) == exit_codes.OK
        assert json.loads(capsys.readouterr().out)["node"]["name"] == "site-a"
    assert main.hoist(["key", "new", "--", "--json"]) == ["key", "new", "--", "--json"]


def test_the_environment_names_the_configuration_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config_file: str
) -> None:
    monkeypatch.setenv("AZEKURA_CONFIG", config_file)
    assert main.run(["config", "show"]) == exit_codes.OK
    assert tomllib.loads(capsys.readouterr().out)["node"]["name"] == "site-a"


def test_usage_faults_exit_2_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["config", "chek"]) == exit_codes.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("azekura: No such command 'chek'")
    assert main.run(["key", "new", "--json"]) == exit_codes.USAGE
    problem = json.loads(capsys.readouterr().err)["error"]
    assert problem["kind"] == "UsageError"
    assert "azekura key new --help" in problem["hint"]


def test_a_bare_call_prints_the_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == exit_codes.USAGE
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("read the command line"), 2),
        (errors.ConfigurationError("file", ("a: b",)), 78),
        (errors.NotFound("show study"), 1),
        (errors.StorageFailed("write"), 1),
        (errors.CloudUnavailable("put"), 1),
    ],
)
def test_exit_code_of_an_error(error: errors.AzekuraError, code: int) -> None:
    assert exit_codes.exit_code(error) == code


def test_every_error_has_an_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, errors.AzekuraError):
            assert any(issubclass(kind, listed) for listed, _ in exit_codes.EXIT_CODES)


def test_errors_are_one_sentence_with_the_hint(capsys: pytest.CaptureFixture[str]) -> None:
    error = errors.Busy("lock", "/data/lock", "another process holds it", "Stop it first")
    output.Output(as_json=False).error(error)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "azekura: lock (/data/lock): another process holds it. Stop it first\n"
    output.Output(as_json=True).error(error)
    assert json.loads(capsys.readouterr().err)["error"] == {
        "kind": "Busy",
        "operation": "lock",
        "subject": "/data/lock",
        "cause": "another process holds it",
        "hint": "Stop it first",
        "retry": True,
    }


def test_table_is_aligned_for_people_and_a_list_for_programs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"use": "identity", "public": "age1x", "secret": 1}, {"use": "x", "public": None}]
    output.Output(as_json=False).table(rows, ("use", "public"))
    assert capsys.readouterr().out == "USE       PUBLIC\nidentity  age1x\nx\n"
    output.Output(as_json=True).table(rows, ("use", "public"))
    assert json.loads(capsys.readouterr().out) == rows


def test_progress_is_silent_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    with output.Output(as_json=False).progress("sealing", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_a_reader_that_went_away_is_no_traceback(config_file: str) -> None:
    line = [sys.executable, "-m", "appliance.cli.main", "config", "schema"]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert ran.stderr == b""
    assert ran.returncode == exit_codes.FAULT


def test_config_check_exit_codes(
    capsys: pytest.CaptureFixture[str], config_file: str, tmp_path: Path
) -> None:
    check = ["config", "check", "--config", config_file]
    assert main.run(check) == exit_codes.FAULT
    assert "keys.identity: read identity" in capsys.readouterr().out
    assert main.run(["key", "new", str(tmp_path / "identity")]) == exit_codes.OK
    assert main.run(["key", "new", "--signing", str(tmp_path / "signing")]) == exit_codes.OK
    capsys.readouterr()
    assert main.run(check) == exit_codes.OK
    assert capsys.readouterr().out == f"{config_file}: no fault\n"
    Path(config_file).write_text("[node]\nname = 3\n")
    assert main.run(check) == exit_codes.BAD_CONFIGURATION
    assert "  node.name: must be a name" in capsys.readouterr().err
    assert main.run([*check, "--json"]) == exit_codes.BAD_CONFIGURATION
    answer = json.loads(capsys.readouterr().out)
    assert answer["usable"] is False
    assert len(answer["faults"]) > 3


def test_config_show_prints_a_file_that_means_the_same(
    capsys: pytest.CaptureFixture[str], config_file: str
) -> None:
    assert main.run(["config", "show", "--config", config_file]) == exit_codes.OK
    assert loads(capsys.readouterr().out) == loads(Path(config_file).read_text())
