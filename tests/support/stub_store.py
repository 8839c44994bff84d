"""An HTTP server that answers as told: for answers that no real store gives when asked to.

`StubStore(answers)` takes a function from (method, path, headers, body) to bytes: the whole answer
as it goes over the wire. b"" ends the connection without an answer.
"""

import http.server
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

DATE = "Mon, 02 Mar 2026 03:00:00 GMT"


@dataclass(frozen=True)
class Asked:
    """One request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    host: str


def answer(
    status: str, body: bytes = b"", *, store: bool = True, length: int | None = None, **headers: str
) -> bytes:
    """Return an answer; `store` gives it the marks of S3."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    if store:
        lines += ["x-amz-request-id: 1234", f"Date: {DATE}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def error(status: str, code: str, extra: str = "", **headers: str) -> bytes:
    """Return an S3 error document."""
    body = f"<Error><Code>{code}</Code><Message>as told</Message>{extra}</Error>".encode()
    return answer(status, body, Content_Type="application/xml", **headers)


class StubStore:
    """Listens on 127.0.0.1; `asked` lists what came."""

    def __init__(self, respond: Callable[[Asked], bytes]) -> None:
        self.respond = respond
        self.asked: list[Asked] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers, body, headers.get("host", ""))
                outer.asked.append(asked)
                sent = outer.respond(asked)
                self.close_connection = not sent or b"onnection: close" in sent
                self.wfile.write(sent)
                self.wfile.flush()

            def log_message(self, *_) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
