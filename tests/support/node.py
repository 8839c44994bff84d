"""A whole node for tests: real processes, a real bucket, one folder. Ended with the test.

`Node` starts `azekura receive` and `azekura uplink` as an engineer would, and asks them through the
command line. Only processes that it started are ended, by their ids.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.remote.embedded import EmbeddedS3
from appliance.seal.identity import load_identity, new_identity_file
from appliance.seal.signing import SigningKey

READY_S = 60.0
STOP_S = 60.0
DRAIN = "90 s"

_TOML = """
[node]
name = "{name}"
role = "{role}"
data_dir = "{data}"
timezone = "Asia/Tokyo"

[dicom]
host = "127.0.0.1"
port = {port}
{edge}
{peers}
[cache]
capacity = "{capacity}"

[packs]
quiet = "{quiet}"
max_age = "{max_age}"
target_size = "{target_size}"

[cloud]
endpoint_url = "{endpoint}"
region = "us-east-1"
bucket = "{bucket}"
prefix = "{prefix}"
retention = "1 d"

[cloud.throttle]
rate = "{rate}"

[web]
host = "127.0.0.1"
port = {web_port}
{web}
[keys]
identity = "{folder}/node.key"
{keys}
{tables}
"""

_EDGE = """
ae_title = "AZEKURA"

[[dicom.peers]]
ae_title = "*"
addresses = ["127.0.0.0/8"]
allow = ["echo", "store", "find", "move", "get"]

[[dicom.peers]]
ae_title = "WORKSTATION"
addresses = ["127.0.0.0/8"]
host = "127.0.0.1"
port = {peer_port}
allow = ["echo", "store", "find", "move", "get", "commit", "destination"]
commitment = "{commitment}"
"""


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Node:
    """One node in `folder`; options are those of the template above, and these.

    role: `appliance` or `standby`. recipients: who else can read what this node writes. signers:
    node name → public signing key. writes: false leaves out what a node that never writes does
    without. bare: leaves out every title and peer. tables: further tables of the file, as text.
    """

    def __init__(
        self, folder: Path, server: EmbeddedS3, bucket: str, prefix: str, **options: Any
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.config_path = folder / "azekura.toml"
        self.port = free_port()
        self.peer_port = free_port()
        self.web_port = free_port()
        self.server = server
        self.bucket = bucket
        self.prefix = prefix
        self.recovery_key = folder / "recovery.key"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._options: dict[str, Any] = {
            "name": "site-a", "commitment": "locked", "capacity": "8 GiB", "quiet": "1 s",
            "max_age": "5 s",
            "target_size": "64 MiB", "rate": "off", "endpoint": server.endpoint_url, "peers": "",
            "role": "appliance", "recipients": (), "signers": {}, "writes": True, "tables": "",
            "web": "", "bare": False,
        } | options  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("node.key", "recovery.key"):
            new_identity_file(str(folder / name))
        SigningKey.create(str(folder / "signing.pem"))
        self.configure()

    def configure(self, **options: Any) -> None:
        """Write the configuration file, with some options changed."""
        self._options |= options
        edge = "" if self._options["bare"] else _EDGE
        text = _TOML.format(
            edge=edge.format(peer_port=self.peer_port, commitment=self._options["commitment"]),
            folder=self.folder, data=self.data, port=self.port,
            web_port=self.web_port, bucket=self.bucket, prefix=self.prefix, keys=self._keys(),
            **self._options,
        )  # fmt: skip
        temporary = self.config_path.with_suffix(".new")
        temporary.write_text(text)
        os.replace(temporary, self.config_path)

    def _keys(self) -> str:
        """Return the rest of the table `keys`."""
        lines = []
        if self._options["writes"]:
            recovery = load_identity(str(self.recovery_key))[0].recipient
            lines += [f'signing = "{self.folder}/signing.pem"', f'recovery = ["{recovery}"]']
        if self._options["recipients"]:
            lines.append(f"recipients = {json.dumps(list(self._options['recipients']))}")
        lines.append("[keys.signers]")
        lines += [f'{name} = "{public}"' for name, public in self._options["signers"].items()]
        return "\n".join(lines)

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self._options["name"])

    @property
    def recipient(self) -> str:
        """To whom others seal what this node is to read."""
        return load_identity(str(self.folder / "node.key"))[0].recipient

    @property
    def signer(self) -> str:
        """The public key by which others know this node's ledger."""
        return SigningKey.load(str(self.folder / "signing.pem")).public_text

    @property
    def endpoint_url(self) -> str:
        """Where this node reaches the bucket."""
        return str(self._options["endpoint"])

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that may use the bucket."""
        assert self.server.credentials is not None
        return {
            **os.environ,
            "AWS_ACCESS_KEY_ID": self.server.credentials.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.server.credentials.secret_access_key,
            "AZEKURA_CONFIG": str(self.config_path),
        }

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "appliance.cli.main", *arguments]

    # --- life

    def start(self, *daemons: str) -> "Node":
        """Start daemons (receive and uplink by default); return when those that listen accept."""
        for daemon in daemons or ("receive", "uplink"):
            log = open(self.folder / f"{daemon}.log", "ab")  # noqa: SIM115 - the process keeps it
            self.processes[daemon] = subprocess.Popen(
                self._command(daemon), env=self.environment(), stdout=log, stderr=log
            )
            log.close()
        for daemon, port in (("receive", self.port), ("web", self.web_port)):
            if daemon in self.processes:
                self._wait_for_port(daemon, port)
        return self

    def _wait_for_port(self, daemon: str, port: int) -> None:
        end_s = time.monotonic() + READY_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
            except OSError:
                assert self.processes[daemon].poll() is None, self.log(daemon)
                assert time.monotonic() < end_s, self.log(daemon)
                time.sleep(0.05)
            else:
                return

    def log(self, daemon: str) -> str:
        """Return what a daemon has logged."""
        return (self.folder / f"{daemon}.log").read_text()

    def kill(self, daemon: str) -> None:
        """End a daemon as a crash would: SIGKILL."""
        process = self.processes.pop(daemon)
        process.kill()
        process.wait(STOP_S)

    def stop(self, *daemons: str) -> None:
        """End daemons in order (all by default)."""
        names = daemons or tuple(self.processes)
        stopping = [self.processes.pop(name) for name in names if name in self.processes]
        for process in stopping:
            process.send_signal(signal.SIGTERM)
        for process in stopping:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise

    # --- asking

    def azekura(self, *arguments: str, check: bool = True) -> str:
        """Run a command of the node and return what it printed."""
        done = subprocess.run(
            self._command(*arguments), env=self.environment(), capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, (
                f"{arguments}: {done.returncode} {done.stdout} {done.stderr}"
            )
        return done.stdout

    def json(self, *arguments: str, check: bool = True) -> Any:
        """Run a command with --json and return its document."""
        return json.loads(self.azekura(*arguments, "--json", check=check))

    def status(self) -> dict[str, Any]:
        """Return `azekura status --json`."""
        found: dict[str, Any] = self.json("status", check=False)
        return found

    def drain(self) -> dict[str, Any]:
        """Wait until everything is verified."""
        found: dict[str, Any] = self.json("drain", "--timeout", DRAIN)
        return found

    def dcmtk(self, tool: str, *arguments: str, check: bool = True) -> str:
        """Run a DCMTK tool against the node and return all it printed."""
        return run_tool(
            [f"/usr/bin/{tool}", "-aec", "AZEKURA", "127.0.0.1", str(self.port), *arguments],
            check=check,
        )


def run_tool(command: Sequence[str], *, check: bool = True, **options: Any) -> str:
    """Run a program, return its output of both kinds; assert that it ended well."""
    done = subprocess.run(
        command, capture_output=True, timeout=300, check=False,
        env={**os.environ, "TCP_NODELAY": "1"}, **options,
    )  # fmt: skip
    output = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    if check:
        assert done.returncode == 0, f"{command}: {done.returncode}\n{output}"
    return output


@pytest.fixture
def node(tmp_path: Path, s3_server: EmbeddedS3, s3_bucket: str) -> Iterator[Node]:
    """A node that is not started yet; ended with the test. Needs the fixtures of s3_fixture."""
    found = Node(tmp_path / "node", s3_server, s3_bucket, f"{tmp_path.name}-{os.getpid()}/")
    yield found
    found.stop()
