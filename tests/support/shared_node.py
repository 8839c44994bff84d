"""One node for the test modules that ask it what a hospital asks, with every peer they need.

Each test stores instances of UIDs of its own; nobody counts on an empty archive. Daemons may be
killed and started again by a test, as long as they run when it ends.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from appliance.config.model import DicomTls
from appliance.remote.embedded import EmbeddedS3
from tests.support.certificates import Authority
from tests.support.node import Node, free_port
from tests.support.running_node import running_node

_PEER = """
[[dicom.peers]]
ae_title = "{ae_title}"
addresses = ["127.0.0.0/8"]
host = "127.0.0.1"
port = {port}
allow = ["echo", "store", "find", "move", "get", "commit", "destination"]
commitment = "{rung}"
commit_report = "{report}"
"""
_TLS = """
[dicom.tls]
port = {tls_port}
certificate = "{own.certificate}"
key = "{own.key}"
ca = "{own.ca}"

[[dicom.peers]]
ae_title = "TLSCT"
addresses = ["127.0.0.0/8"]
allow = ["echo", "store"]
tls = true
web_certificates = ["ct-scanner"]

[[dicom.peers]]
ae_title = "TLSDEST"
host = "127.0.0.1"
port = {destination_port}
allow = ["destination"]
tls = true
"""
_PEERS = {
    "LOCAL": ("local", "same"),
    "CLOUD": ("cloud", "same"),
    "LOCKED": ("locked", "same"),
    "ELSEWHERE": ("locked", "new"),
    "ORTHANC": ("locked", "same"),
}


class SharedNode:
    """The node; `ports` by the AE title of a peer, on which nobody listens unless a test does.

    `peer_tls` are the files of a peer of the hospital, `stranger_tls` of one of another authority.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in (*_PEERS, "TLSDEST")}
        self.tls_port = free_port()
        authority, other = Authority(folder, "authority"), Authority(folder, "other")
        self._own_tls = authority.issue("node")
        self.peer_tls: DicomTls = authority.issue("ct-scanner")
        self.stranger_tls: DicomTls = other.issue("stranger", ca=authority.ca)
        self.node: Node

    def web(self) -> str:
        """Return what the table [web] has besides host and port."""
        return f'client_ca = "{self._own_tls.ca}"\n'

    def peers(self) -> str:
        """Return the configuration of the peers and of TLS."""
        listed = [
            _PEER.format(ae_title=name, port=self.ports[name], rung=rung, report=report)
            for name, (rung, report) in _PEERS.items()
        ]
        tls = _TLS.format(
            tls_port=self.tls_port, own=self._own_tls, destination_port=self.ports["TLSDEST"]
        )
        return "".join([*listed, tls])


@contextlib.contextmanager
def shared_node(folder: Path, server: EmbeddedS3, bucket: str) -> Iterator[SharedNode]:
    """Run the node."""
    shared = SharedNode(folder)
    daemons = ("receive", "uplink", "web")
    options = {"peers": shared.peers(), "web": shared.web()}
    with running_node(folder / "node", server, bucket, *daemons, **options) as node:
        shared.node = node
        yield shared
