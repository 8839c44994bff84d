"""The commands for terms and erasure: what they refuse before anything is asked of a bucket."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from appliance.archive.disposal_plan import PlanFile, write_plan
from appliance.archive.requests import RequestBox
from appliance.archive.status import UplinkStatus, write_uplink_status
from appliance.archive.studies import show_study
from appliance.cli import expire, main
from appliance.cli.invocation import Invocation
from appliance.foundation.clock import SystemClock
from appliance.foundation.errors import Refused, UsageError
from appliance.foundation.files import FileSystem
from appliance.seal.signing import SigningKey
from tests.support.archive_box import NODE, Box, sample
from tests.support.fake_store import FakeStore
from tests.support.keeping import plan_of, received

CONFIG = """
[node]
name = "{node}"
demo = true
data_dir = "{folder}/data"
[cache]
capacity = "8 GiB"
[cloud]
bucket = "bucket"
endpoint_url = "{endpoint}"
[keys]
identity = "{folder}/node.key"
signing = "{folder}/signing.pem"
"""
STUDY = sample(1, 1).study


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """A node with a study of thirty days."""
    # What a command makes of this process's logs would outlive the test, and its standard error.
    monkeypatch.setattr("appliance.foundation.log.configure", lambda **_: None)
    found = Box(tmp_path, FakeStore(SystemClock()), clock=SystemClock())
    text = CONFIG.format(node=NODE, folder=tmp_path, endpoint="http://127.0.0.1:9")
    (tmp_path / "azekura.toml").write_text(text)
    received(found, sample(1, 1))
    yield found
    found.close()


def run(box: Box, *arguments: str) -> int:
    return main.run(["--config", str(box.folder / "azekura.toml"), *arguments])


def written(box: Box) -> tuple[str, PlanFile]:
    file = plan_of(box, STUDY)
    path = str(box.folder / "plan.json")
    write_plan(path, file.plan, FileSystem())
    return path, file


def test_a_rejection_and_a_hold_say_why(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is asked of the uplink without a reason: the ledger keeps it for years."""
    for line in (
        ("study", "reject", STUDY),
        ("study", "reject", STUDY, "--reason", " "),
        ("study", "hold", STUDY),
        ("study", "hold", STUDY, "--reason", ""),
    ):
        assert run(box, *line) == 2
        assert "reason" in capsys.readouterr().err
    assert RequestBox(FileSystem(), box.layout.requests).pending() == []
    assert show_study(box.index, box.layout, STUDY)["hold"] is None


def test_the_report_has_every_study_by_its_term(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(box, "retention", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["studies"]
    assert (row["study_instance_uid"], row["packs"], row["held"]) == (STUDY, 1, False)
    assert run(box, "retention", "--before", "20200101", "--json") == 0
    assert json.loads(capsys.readouterr().out)["studies"] == []
    assert run(box, "retention", "--before", "soon") == 2


def test_what_will_have_expired_is_listed(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(box, "expire", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(box, "expire", "list", "--before", "2099-01-01") == 0
    said = capsys.readouterr().out
    assert STUDY in said
    assert "1 studies, 1 instances" in said


def test_a_plan_names_studies_or_all(box: Box) -> None:
    assert run(box, "expire", "plan", "--out", str(box.folder / "x")) == 2
    assert run(box, "expire", "plan", "--out", str(box.folder / "x"), "--all", STUDY) == 2


def test_a_run_needs_a_credential_of_its_own(
    box: Box, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node's own, wherever that comes from, is not taken for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "node")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "node")
    box_path, file = _placed(box)
    assert run(box, "expire", "run", box_path, "--confirm", file.sha256) == 2
    assert expire.KEY_ID in capsys.readouterr().err


def test_a_run_needs_an_uplink(
    box: Box, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is erased that nobody can write down."""
    monkeypatch.setenv(expire.KEY_ID, "AKIA")
    monkeypatch.setenv(expire.SECRET, "x")
    path, file = _placed(box)
    assert run(box, "expire", "run", path, "--confirm", file.sha256) == 1
    assert "uplink does not run" in capsys.readouterr().err


@pytest.mark.parametrize("condition", ["ledger", "bucket"])
def test_a_run_needs_an_uplink_that_can_write(
    box: Box, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, condition: str
) -> None:
    """While it may not append to the ledger, what is erased could not be written down."""
    monkeypatch.setenv(expire.KEY_ID, "AKIA")
    monkeypatch.setenv(expire.SECRET, "x")
    path, file = _placed(box)
    problem = {"condition": condition, "sentence": "something else writes", "hint": "look"}
    said = UplinkStatus(box.clock.now().timestamp(), 1, "up", 1, 0.0, None, [problem])
    write_uplink_status(FileSystem(), box.layout, said)
    assert run(box, "expire", "run", path, "--confirm", file.sha256) == 1
    assert "something else writes" in capsys.readouterr().err


def test_a_standby_that_writes_nothing_erases_nothing(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = _placed(box)
    config = box.folder / "azekura.toml"
    public = SigningKey.load(str(box.folder / "signing.pem")).public_text
    text = config.read_text().replace("demo = true", 'demo = true\nrole = "standby"')
    config.write_text(f'{text}[keys.signers]\nsite-b = "{public}"\n')
    assert run(box, "expire", "run", path, "--confirm", file.sha256) == 2
    assert "writes no ledger" in capsys.readouterr().err


def test_a_plan_of_elsewhere_is_refused(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    path, file = written(box)  # made for a bucket without an endpoint
    assert run(box, "expire", "run", path, "--confirm", file.sha256) == 1
    assert "another bucket" in capsys.readouterr().err


def _placed(box: Box) -> tuple[str, PlanFile]:
    """Return a plan for the bucket of the configuration."""
    path, file = written(box)
    plan = msgspec.structs.replace(file.plan, endpoint_url="http://127.0.0.1:9")
    write_plan(path, plan, FileSystem())
    return path, PlanFile(plan, plan.sha256())


class Terminal(io.StringIO):
    """Somebody who types these lines."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("typed", ["", "yes", "erase 1 studies", "erase 1 studies 00000000"])
def test_nothing_but_the_phrase_confirms(
    box: Box, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    """A hurried yes erases nothing; the phrase names how many, and which plan."""
    _, file = written(box)
    call = Invocation(str(box.folder / "azekura.toml"), as_json=False)
    monkeypatch.setattr("sys.stdin", Terminal(f"{typed}\nanything\n"))
    with pytest.raises(Refused, match="not typed"):
        expire._confirm(call, file, "")
    monkeypatch.setattr("sys.stdin", Terminal(f"erase 1 studies {file.sha256[:8]}\n"))
    expire._confirm(call, file, "")


def test_nobody_is_asked_where_nobody_is(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = written(box)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    call = Invocation(str(box.folder / "azekura.toml"), as_json=False)
    with pytest.raises(UsageError, match="--confirm"):
        expire._confirm(call, file, "")
    with pytest.raises(Refused, match="hash"):
        expire._confirm(call, file, file.sha256[:-1])
    expire._confirm(call, file, file.sha256)
