"""A DICOMweb client of a node: HTTPS with the node's own authority, and a bearer token."""

import secrets
from pathlib import Path
from typing import Any

import requests

from tests.support.node import Node

TIMEOUT_S = 90
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class WebClient:
    """Asks one node's web daemon; `session` is for what this has no name for."""

    def __init__(self, node: Node, allow: str = "read,store", token: str | None = None) -> None:
        self.node = node
        self.base = f"https://127.0.0.1:{node.web_port}"
        self.name = f"t-{secrets.token_hex(4)}"
        self.token = token or node.azekura("token", "new", self.name, "--allow", allow).strip()
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(self.authority)
        self.session.headers["Authorization"] = f"Bearer {self.token}"

    @property
    def authority(self) -> Path:
        """The node's own authority, as a browser would be given it."""
        return self.node.data / "state" / "web" / "ca.pem"

    def get(self, path: str, accept: str = "", **options: Any) -> requests.Response:
        """Return the answer to a GET of a path, below /dicom-web unless it begins with a slash."""
        headers = {"Accept": accept} if accept else {}
        url = self.base + (path if path.startswith("/") else f"/dicom-web/{path}")
        return self.session.get(url, headers=headers, timeout=TIMEOUT_S, **options)

    def json(self, path: str) -> Any:
        """Return the JSON document of a GET that succeeds."""
        answer = self.get(path)
        assert answer.status_code == 200, (answer.status_code, answer.text[:1000])
        return answer.json()

    def store(
        self, body: Any, study: str = "", boundary: str = "b0undary", **headers: str
    ) -> requests.Response:
        """Return the answer to a POST of a multipart body."""
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        url = f"{self.base}/dicom-web/studies" + (f"/{study}" if study else "")
        sent = {"Content-Type": kind, "Accept": "application/dicom+json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return self.session.post(url, data=body, headers=sent, timeout=TIMEOUT_S)

    def parts(self, path: str, accept: str) -> list[tuple[dict[str, str], bytes]]:
        """Return headers and body of each part of a multipart answer."""
        answer = self.get(path, accept)
        assert answer.status_code == 200, (answer.status_code, answer.text[:1000])
        return parts_of(answer)


def parts_of(answer: requests.Response) -> list[tuple[dict[str, str], bytes]]:
    """Return headers and body of each part, read by their Content-Length."""
    kind = answer.headers["Content-Type"]
    assert kind.startswith("multipart/related"), kind
    boundary = kind.partition("boundary=")[2].partition(";")[0].strip('"').encode()
    found = []
    body, position = answer.content, 0
    while not body.startswith(b"--" + boundary + b"--", position):
        assert body.startswith(b"--" + boundary + b"\r\n", position), body[position : position + 99]
        start = body.index(b"\r\n", position) + 2
        end = body.index(b"\r\n\r\n", start)
        lines = body[start:end].decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers["Content-Length"])
        found.append((headers, body[end + 4 : end + 4 + length]))
        position = end + 4 + length + 2
    return found


def multipart(files: list[bytes], boundary: str = "b0undary") -> bytes:
    """Return the body of a store: a part of each Part 10 file."""
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()


def dataset_of_part(part10: bytes) -> bytes:
    """Return what lies behind the file meta group."""
    assert part10[128:132] == b"DICM"
    return part10[144 + int.from_bytes(part10[140:144], "little") :]
