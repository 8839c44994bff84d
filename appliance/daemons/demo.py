"""The demo: an embedded object store, a node on it, keys, sample studies.

Owns one folder and the processes it starts. Never for patients: the only bucket is on this disk.
"""

import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable

from appliance.archive.status import node_status
from appliance.config.load import load
from appliance.config.model import Config
from appliance.daemons.child import Child
from appliance.daemons.parts import Parts
from appliance.daemons.running import Running
from appliance.daemons.samples import send_samples
from appliance.foundation.errors import Busy, NotFound, UsageError
from appliance.foundation.files import FileSystem
from appliance.remote.embedded import EmbeddedS3
from appliance.seal.identity import load_identity, new_identity_file
from appliance.seal.signing import SigningKey

BUCKET = "azekura-demo"
READY_S = 60.0
VERIFIED_S = 300.0
POLL_S = 0.2

_TOML = """\
# Written by azekura demo; change it, and start the demo again with the same folder.
[node]
name = "demo"
demo = true
data_dir = "{data}/node"
timezone = "Asia/Tokyo"

[dicom]
ae_title = "AZEKURA"
host = "127.0.0.1"
port = {port}

[[dicom.peers]]                 # any caller on this machine
ae_title = "*"
addresses = ["127.0.0.0/8"]
allow = ["echo", "store", "find", "move", "get"]

[[dicom.peers]]                 # a destination for C-MOVE: storescp or movescu +P 11113
ae_title = "WORKSTATION"
addresses = ["127.0.0.0/8"]
host = "127.0.0.1"
port = 11113
allow = ["echo", "store", "find", "move", "get", "commit", "destination"]

[cache]
capacity = "20 GiB"

[packs]
quiet = "2 s"

[cloud]
endpoint_url = "{endpoint}"
region = "us-east-1"
bucket = "{bucket}"
retention = "1 d"

[cloud.throttle]
rate = "off"                    # try "8 Mbit/s": it takes effect at once

[web]
host = "127.0.0.1"
port = {web_port}

[keys]
identity = "{data}/keys/node.key"
signing = "{data}/keys/signing.pem"
recovery = ["{recovery}"]
"""

_NEXT = """\
The node is up and {instances} sample instances of {studies} studies are verified in the bucket.

  DICOM       AZEKURA at 127.0.0.1 port {port}, any caller
  DICOMweb    https://127.0.0.1:{web_port}/dicom-web, with a token
  bucket      {endpoint}, bucket {bucket}, Object Lock on
  folder      {data}   (configuration, keys, packs, index, bucket)

Try, in another terminal in the project's folder:
  . {data}/environment                      # the azekura command, and where this demo is
  echoscu -aec AZEKURA 127.0.0.1 {port}
  storescu -aec AZEKURA 127.0.0.1 {port} +sd FOLDER-OF-DICOM-FILES
  findscu -S -aec AZEKURA 127.0.0.1 {port} -k QueryRetrieveLevel=STUDY -k StudyInstanceUID \\
      -k PatientName='*' -k InstanceAvailability -k NumberOfStudyRelatedInstances
  azekura status
  azekura study list
  azekura study evict {study}
  azekura study show  {study}
  getscu +B -S -aec AZEKURA 127.0.0.1 {port} -k QueryRetrieveLevel=STUDY \\
      -k StudyInstanceUID={study}    # comes back from the bucket
  azekura drain
  curl --cacert {data}/node/state/web/ca.pem \\
      --header "Authorization: Bearer $(azekura token new curl)" \\
      https://127.0.0.1:{web_port}/dicom-web/studies
  azekura recover --identity {data}/keys/recovery.key --to recovered

Press Ctrl-C to end the demo."""


class Demo:
    """One run of the demo; used by the main thread."""

    def __init__(self, data_dir: str, port: int, web_port: int, say: Callable[[str], None]) -> None:
        self._data = data_dir
        self._port = port
        self._web_port = web_port
        self._say = say
        self._files = FileSystem()
        self._config_path = os.path.join(data_dir, "azekura.toml")

    def run(self, *, once: bool) -> int:
        """Run until Ctrl-C, or with `once` until all is verified; return the exit code."""
        self._check_ports()
        started_s = time.monotonic()
        running = Running()
        running.install()
        self._files.make_directory(os.path.join(self._data, "keys"))
        self._say("starting the embedded object store")
        store = EmbeddedS3(os.path.join(self._data, "s3"), self._files)
        store.start()
        node = None
        try:
            store.create_bucket(BUCKET)
            config = self._configure(store.endpoint_url)
            assert store.credentials is not None
            os.environ["AWS_ACCESS_KEY_ID"] = store.credentials.access_key_id
            os.environ["AWS_SECRET_ACCESS_KEY"] = store.credentials.secret_access_key
            self._write_environment()
            self._say("starting the node")
            node = Child("node", "appliance.cli.main", ["--config", self._config_path, "serve"])
            node.start()
            self._wait_for_port(running.stop)
            study = send_samples("127.0.0.1", self._port, config.dicom.ae_title)
            self._say("sample studies stored; waiting until the bucket has them, verified")
            found = self._wait_for_verified(config, running.stop)
            if found is None:
                return 1
            self._say(
                _NEXT.format(
                    instances=found["instances"],
                    studies=found["studies"],
                    port=self._port,
                    web_port=self._web_port,
                    endpoint=store.endpoint_url,
                    bucket=BUCKET,
                    data=self._data,
                    study=study,
                )
            )
            self._say(f"(ready after {time.monotonic() - started_s:.0f} s)")
            return 0 if once else running.wait()
        finally:
            if node is not None:
                node.stop()
            store.stop()

    def _check_ports(self) -> None:
        for option, port in (("--port", self._port), ("--web-port", self._web_port)):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind(("127.0.0.1", port))
                except OSError as cause:
                    raise UsageError(
                        "start the demo",
                        f"port {port}",
                        cause.strerror or "",
                        f"End what listens there, or give another {option}",
                    ) from cause

    def _configure(self, endpoint_url: str) -> Config:
        """Write keys and configuration, or take those of an earlier run."""
        keys = os.path.join(self._data, "keys")
        for name in ("node.key", "recovery.key"):
            path = os.path.join(keys, name)
            if not os.path.exists(path):
                new_identity_file(path)
        signing = os.path.join(keys, "signing.pem")
        if not os.path.exists(signing):
            SigningKey.create(signing)
        recovery = load_identity(os.path.join(keys, "recovery.key"))[0].recipient
        if os.path.exists(self._config_path):
            self._point_at(endpoint_url)
        else:
            text = _TOML.format(
                data=self._data,
                port=self._port,
                web_port=self._web_port,
                endpoint=endpoint_url,
                bucket=BUCKET,
                recovery=recovery,
            )
            self._files.write_atomic(self._config_path, text.encode())
        return load(self._config_path)

    def _point_at(self, endpoint_url: str) -> None:
        """Put the ports of this run into an earlier run's configuration."""
        with open(self._config_path, encoding="utf-8") as file:
            lines = file.read().splitlines()
        ports = {"[dicom]": self._port, "[web]": self._web_port}
        table = ""
        for number, line in enumerate(lines):
            if line.startswith("["):
                table = line.partition(" ")[0]
            elif line.startswith("endpoint_url"):
                lines[number] = f'endpoint_url = "{endpoint_url}"'
            elif line.startswith("port =") and table in ports:
                lines[number] = f"port = {ports[table]}"
        if "[web]" not in lines:
            lines += ["", "[web]", 'host = "127.0.0.1"', f"port = {self._web_port}"]
        self._files.write_atomic(self._config_path, ("\n".join(lines) + "\n").encode())

    def _write_environment(self) -> None:
        """Write what a shell needs to talk to this demo; it holds the demo's credentials."""
        values = {
            "AZEKURA_CONFIG": self._config_path,
            "AWS_ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
        }
        text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
        text += f'export PATH="$PATH":{shlex.quote(os.path.dirname(sys.executable))}\n'
        self._files.write_atomic(os.path.join(self._data, "environment"), text.encode(), 0o600)

    def _wait_for_port(self, stop: threading.Event) -> None:
        end_s = time.monotonic() + READY_S
        while time.monotonic() < end_s and not stop.is_set():
            try:
                socket.create_connection(("127.0.0.1", self._port), 1.0).close()
            except OSError:
                stop.wait(POLL_S)
            else:
                return
        raise NotFound("start the demo", "the node", "it does not listen", "See its log above")

    def _wait_for_verified(self, config: Config, stop: threading.Event) -> dict[str, int] | None:
        parts = Parts(config)
        try:
            end_s = time.monotonic() + VERIFIED_S
            while not stop.is_set():
                found = node_status(config, parts.layout, parts.index, parts.clock, parts.condition)
                if found["instances"] and not found["pending_instances"]:
                    return found
                if time.monotonic() > end_s:
                    raise Busy(
                        "start the demo",
                        "the samples",
                        f"{found['pending_instances']} are still pending",
                    )
                stop.wait(POLL_S)
            return None
        finally:
            parts.close()
