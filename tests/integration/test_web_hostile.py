"""A whole node's web daemon among strangers: they get nothing, and others go on being answered."""

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest
from pydicom.uid import generate_uid

from appliance.web.limits import CONNECTIONS_PER_ADDRESS_MAX, FAILURES_FREE_COUNT
from tests.support.dimse import small_ct, write_part10
from tests.support.shared_node import SharedNode
from tests.support.web_client import WebClient

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def client(shared: SharedNode) -> WebClient:
    return WebClient(shared.node, "read,store")


def connected(client: WebClient) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(client.authority))
    plain = socket.create_connection(("127.0.0.1", client.node.web_port), 60)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def answer(sock: ssl.SSLSocket) -> bytes:
    """Return all that comes until the other end closes."""
    found = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while piece := sock.recv(65536):
            found += piece
    return found


def raw(client: WebClient, request: bytes) -> bytes:
    with connected(client) as sock:
        sock.sendall(request)
        return answer(sock)


@pytest.fixture(autouse=True)
def _still_alive(client: WebClient) -> Iterator[None]:
    """After each attack the daemon is the same process, and answers."""
    pid = client.node.processes["web"].pid
    yield
    assert client.node.processes["web"].poll() is None
    assert client.node.processes["web"].pid == pid
    assert client.get("studies?limit=1").status_code in (200, 204)


def test_what_is_no_http_is_closed(client: WebClient) -> None:
    """Garbage in TLS and without it, a header bomb, a request line without end."""
    end = b"Connection: close\r\n\r\n"
    assert b" 400 " in raw(client, b"\x16\x03\x01" + os.urandom(200) + b"\r\n\r\n")[:40]
    assert b" 400 " in raw(client, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + end)[:40]
    many = b"".join(b"A%d: b\r\n" % number for number in range(1000))
    assert b" 400 " in raw(client, b"GET /health HTTP/1.1\r\n" + many + end)[:40]
    long = b"GET /health HTTP/1.1\r\nA: " + b"b" * 100_000 + b"\r\n" + end
    assert b" 400 " in raw(client, long)[:40]
    with socket.create_connection(("127.0.0.1", client.node.web_port), 60) as plain:
        plain.sendall(os.urandom(500))
        with contextlib.suppress(ConnectionError):
            assert len(plain.recv(4096)) < 100


def test_paths_lead_nowhere(client: WebClient) -> None:
    """Nothing of the file system, whatever the spelling; methods that are not there."""
    for path in (
        "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/dicom-web/../../../etc/passwd",
        "/dicom-web/studies/..%2f..%2f..%2fetc%2fpasswd", "/dicom-web/studies//metadata",
        "/dicom-web/studies/1.2/series/../../../state/tokens.json", "/state/tokens.json",
        "/dicom-web/studies/%00/metadata", "//etc/passwd", "/dicom-web/studies/1.2;x/metadata",
    ):  # fmt: skip
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        found = raw(client, f"{head}Authorization: Bearer {client.token}\r\n\r\n".encode())
        assert found[9:12] in (b"400", b"404"), path
        assert b"root:" not in found
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "BREW"):
        assert client.session.request(method, f"{client.base}/dicom-web/studies").status_code in (
            400, 405,
        )  # fmt: skip


def test_nothing_of_a_request_comes_back_as_markup(client: WebClient) -> None:
    """Scripts in parameters, paths, hosts and headers are not in answers, or are inert."""
    for path in (f"studies?{SCRIPT}=1", f"studies/{SCRIPT}", f"studies?limit={SCRIPT}"):
        found = client.get(path)
        assert found.status_code in (400, 404)
        assert "<script" not in found.text
        assert "html" not in found.headers["Content-Type"]
    evil = client.session.get(
        f"{client.base}/dicom-web/studies?limit=1", headers={"Host": 'evil"<script>.example'}
    )
    assert evil.status_code == 400
    split = raw(client, b"GET /health HTTP/1.1\r\nHost: a\r\nX: y\rSet-Cookie: z\r\n\r\n")
    assert b" 400 " in split[:40]
    assert b"Set-Cookie" not in split
    assert b"Server: Azekura" in split
    assert b"nosniff" in split


def test_a_patients_name_is_data(shared: SharedNode, client: WebClient, tmp_path) -> None:
    """A script as a name is stored, found and given out as JSON."""
    study = generate_uid()
    dataset, _ = small_ct(StudyInstanceUID=study, PatientName=SCRIPT)
    write_part10(dataset, str(tmp_path / "a.dcm"))
    shared.node.dcmtk("storescu", str(tmp_path / "a.dcm"))
    found = client.get(f"studies?StudyInstanceUID={study}")
    assert found.json()[0]["00100010"]["Value"] == [{"Alphabetic": SCRIPT}]
    assert found.headers["Content-Type"] == "application/dicom+json"
    assert found.headers["X-Content-Type-Options"] == "nosniff"


def test_large_queries_and_lists_are_bounded(client: WebClient) -> None:
    """Thousands of parameters, of UIDs, of frames, of media types; numbers without end."""
    uids = ",".join(f"1.2.{number}" for number in range(4000))
    assert client.get(f"studies?StudyInstanceUID={uids}").status_code in (200, 204, 400)
    many = "&".join(f"PatientID={number}" for number in range(1000))
    assert client.get(f"studies?{many}").status_code == 400
    assert client.get("studies?limit=" + "9" * 400).status_code == 400
    deep = ".".join(["00400275"] * 300)
    assert client.get(f"studies?{deep}=1").status_code in (200, 204, 400)
    wild = "*" * 2000 + "a" + "?*" * 500
    assert client.get(f"studies?PatientName={wild}&limit=1").status_code in (200, 204, 400)
    frames = ",".join(["1"] * 2000)
    path = f"studies/1.2/series/1.2/instances/1.2/frames/{frames}"
    assert client.get(path).status_code == 400
    accept = ", ".join(["image/jpeg"] * 500)
    assert client.get("studies", accept=accept).status_code == 406
    assert client.get("studies", accept="a" * 7000).status_code == 400


def test_wrong_tokens_are_slowed_and_right_ones_are_not(
    shared: SharedNode, client: WebClient
) -> None:
    """Guessing costs time; who has a token beside the guesser does not wait."""
    guesser = WebClient(shared.node, token="azk_guess")
    began_s = time.monotonic()
    for _ in range(FAILURES_FREE_COUNT + 4):
        assert guesser.get("studies").status_code == 401
    assert time.monotonic() - began_s > 0.25 + 0.5
    began_s = time.monotonic()
    assert client.get("studies?limit=1").status_code in (200, 204)
    log = shared.node.log("web")
    assert "azk_guess" not in log


def test_idle_connections_keep_nobody_out_for_long(client: WebClient) -> None:
    """One address has so many connections and no more; when they go, there is room again."""
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS_PER_ADDRESS_MAX + 20):
            stack.enter_context(socket.create_connection(("127.0.0.1", client.node.web_port), 60))
        client.session.close()
        with contextlib.suppress(OSError):
            assert raw(client, HEALTH) == b""
    end_s = time.monotonic() + 90
    while True:
        with contextlib.suppress(OSError, AssertionError):
            assert b" 200 " in raw(client, HEALTH)
            break
        assert time.monotonic() < end_s


@pytest.mark.soak
def test_slow_clients_are_cut_off(client: WebClient) -> None:
    """Headers that drip, a body that stops, an answer that is not read: each ends in its time."""
    post = (
        b"POST /dicom-web/studies HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n"
        b'Content-Type: multipart/related; type="application/dicom"; boundary=b\r\n'
        + f"Authorization: Bearer {client.token}\r\n\r\n".encode()
    )
    took: dict[str, float] = {}

    def drip(name: str, first: bytes) -> None:
        began_s = time.monotonic()
        with connected(client) as sock:
            sock.sendall(first)
            sock.settimeout(1.0)
            while time.monotonic() - began_s < 180:
                with contextlib.suppress(TimeoutError):
                    if not sock.recv(4096):
                        break
                with contextlib.suppress(OSError):
                    sock.sendall(b"a" if name == "headers" else b"")
        took[name] = time.monotonic() - began_s

    threads = [
        threading.Thread(target=drip, args=("headers", b"GET /health HTTP/1.1\r\nX: ")),
        threading.Thread(target=drip, args=("body", post + b"--b\r\n")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(took.values()) < 120, took


def test_no_attack_was_logged_with_what_it_sent(shared: SharedNode) -> None:
    """The log of all this has no path, no name, no traceback."""
    log = shared.node.log("web")
    for word in ("Traceback", "passwd", "<script", "Authorization"):
        assert word not in log, word
