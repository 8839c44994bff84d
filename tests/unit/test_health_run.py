"""Running checks: bounded in time, in order, and none holds up or hides another."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from appliance.cli import exit_codes
from appliance.foundation.errors import CloudRefused, KeyUnavailable
from appliance.health.check import Check, Severity, error, failed, ok, run_checks, warning


def test_findings_come_in_the_order_of_the_checks() -> None:
    """Whoever reads the lines finds each in its place, however long a check took."""
    first_may_end = threading.Event()

    def slow():
        assert first_may_end.wait(10)
        return [ok("slow", "fine"), warning("slow", "odd", "look")]

    def quick():
        first_may_end.set()
        return [error("quick", "broken", "mend")]

    found = run_checks([Check("slow", slow), Check("quick", quick)])
    assert [(each.condition, each.severity) for each in found] == [
        ("slow", Severity.OK),
        ("slow", Severity.WARNING),
        ("quick", Severity.ERROR),
    ]


def test_a_check_that_hangs_is_a_finding_and_holds_up_nobody() -> None:
    """A dead disk under one check does not keep the operator from the other lines."""
    for_ever = threading.Event()

    def hang():
        for_ever.wait(60)
        return [ok("hang", "never")]

    began_s = time.monotonic()
    found = run_checks(
        [Check("hang", hang), Check("other", lambda: [ok("other", "fine")])], limit_s=0.2
    )
    for_ever.set()
    assert time.monotonic() - began_s < 10
    assert [each.severity for each in found] == [Severity.ERROR, Severity.OK]
    assert found[0].condition == "hang"
    assert "no result in time" in found[0].sentence


def test_a_check_that_breaks_is_a_finding() -> None:
    """Our own fault in one check is told, not hidden, and the hint of an error of ours is kept."""

    def broken():
        raise ZeroDivisionError("by zero")

    def refused():
        raise CloudRefused("HeadBucket", "archive", "403", "Ask for s3:ListBucket")

    one, two = run_checks([Check("broken", broken), Check("refused", refused)])
    assert one.severity is two.severity is Severity.ERROR
    assert "ZeroDivisionError" in one.sentence
    assert two.sentence == "HeadBucket (archive): 403"
    assert two.hint == "Ask for s3:ListBucket"


def test_an_error_without_parts_is_still_a_sentence() -> None:
    assert failed("x", KeyUnavailable("read identity")).sentence == "read identity"


def test_doctor_works_before_the_first_start_and_without_a_bucket(tmp_path: Path) -> None:
    """A line each for people, the same for programs, exit code 1 for an error, nothing made."""
    config = tmp_path / "azekura.toml"
    config.write_text(
        f"""
        [node]
        name = "site-a"
        data_dir = "{tmp_path}/data"
        demo = true
        [dicom]
        port = 0
        [cache]
        capacity = "1 GiB"
        [cloud]
        bucket = "archive"
        endpoint_url = "http://127.0.0.1:9"
        [keys]
        identity = "{tmp_path}/identity"
        signing = "{tmp_path}/signing"
        """
    )

    def doctor(*options: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "appliance.cli.main", "doctor", *options],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                **os.environ,
                "AZEKURA_CONFIG": str(config),
                "AWS_ACCESS_KEY_ID": "nobody",
                "AWS_SECRET_ACCESS_KEY": "nothing",
            },
        )
        assert done.returncode == exit_codes.FAULT, done.stderr
        return done.stdout

    lines = doctor().splitlines()
    assert "warning  configuration: the node is in demo mode" in lines
    assert any(line.startswith("error    bucket_line: ") for line in lines)
    found = {each["condition"]: each for each in json.loads(doctor("--json"))}
    assert found["identity"]["severity"] == "error"
    assert found["dicom_port"]["severity"] == "ok"
    assert not (tmp_path / "data").exists()
