"""A DICOMweb client of a node: HTTPS with the node's own authority, and a bearer token."""

import secrets
from pathlib import Path
from typing import Any

import requests

from tests.support.node import Node

TIMEOUT_S = 90


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
