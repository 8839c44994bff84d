"""WADO-RS of a cached CT: this node beside Orthanc's plugin.

This node speaks HTTPS only, and checks every sha256 before it sends; Debian's Orthanc does not
answer over TLS, so it is asked by plain HTTP. The rates stand side by side without a target.
"""

import socket
import ssl
import statistics
import time
from pathlib import Path

from tests.bench import peers, senders
from tests.bench.datasets import make_study, study_uid
from tests.bench.measure_store import LARGE, Rates
from tests.support.node import Node

RUN = 900
WHAT = "WADO-RS 1,000 × 525 kB"
METADATA = "WADO-RS metadata of 1,000"
BUFFER_BYTES = 1024 * 1024
ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
JSON = "application/dicom+json"


def measure(folder: Path, node: Node, destination_port: int, count: int, runs: int) -> Rates:
    """Return instances a second by (what, peer); peers in turn."""
    rates: Rates = {}
    sent = make_study(folder / "sent", LARGE, count, RUN)
    study = study_uid(LARGE, RUN)
    least = count * 500_000
    with peers.azekura(node, "receive", "uplink", "web") as peer:
        senders.store(peer.port, sent)
        token = node.azekura("token", "new", "bench").strip()
        tls = ssl.create_default_context(cafile=str(node.data / "state" / "web" / "ca.pem"))
        _time(rates, "Azekura", node.web_port, study, (count, least, runs), tls, token)
    with peers.orthanc(folder / "wado-orthanc", destination_port, dicom_web=True) as peer:
        senders.store(peer.port, sent)
        _time(rates, "Orthanc", peer.http_port, study, (count, least, runs))
    return rates


def _time(
    rates: Rates,
    name: str,
    port: int,
    study: str,
    sizes: tuple[int, int, int],
    tls: ssl.SSLContext | None = None,
    token: str = "",
) -> None:
    count, least, runs = sizes
    for what, path, accept, bytes_min in (
        (WHAT, f"/dicom-web/studies/{study}", ACCEPT, least),
        (METADATA, f"/dicom-web/studies/{study}/metadata", JSON, count * 500),
    ):
        taken = []
        for _ in range(runs + 1):  # the first one warms what can be warmed
            started_s = time.perf_counter()
            received = get(port, path, accept, tls, token)
            taken.append(time.perf_counter() - started_s)
            assert received > bytes_min, f"{name} sent {received} bytes"
        rates[what, name] = count / statistics.median(taken[1:])


def get(port: int, path: str, accept: str, tls: ssl.SSLContext | None, token: str) -> int:
    """Return how many bytes an answer has; nothing of it is kept."""
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: {accept}\r\n"
    head += f"Authorization: Bearer {token}\r\n" if token else ""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    total = 0
    with socket.create_connection(("127.0.0.1", port), 120) as plain:
        sock = tls.wrap_socket(plain, server_hostname="127.0.0.1") if tls else plain
        with sock:
            sock.sendall(f"{head}Connection: close\r\n\r\n".encode())
            first = sock.recv_into(buffer)
            assert bytes(buffer[:13]).split()[1] == b"200", bytes(buffer[:first])[:300]
            total = first
            while count := sock.recv_into(buffer):
                total += count
    return total
