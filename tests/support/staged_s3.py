"""A real S3 server behind a reverse proxy that meets requests with faults, as a script says.

Signatures, checksums, versions and locks are the real server's; only what is staged differs. The
client signs for this proxy's address, which is sent on as it came.

`stage(matching, *faults)` lets the next requests that match meet these faults, one each;
`always(matching, fault)` all of them, until `clear`. `asked` lists every request that came.
"""

import contextlib
import http.client
import http.server
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from tests.support import stub_store

FORWARD_S = 60.0


@dataclass(frozen=True)
class Asked:
    """One request that came: its S3 name, its key, the bytes of its body, what it met."""

    operation: str
    path: str
    body_bytes: int
    fault: str


@dataclass(frozen=True)
class Fault:
    """What a request meets. Without `answer` it reaches the store.

    `answer`: sent in the store's place. `flip`: a byte of the body is another on the way. `hides`:
    headers of the answer that do not arrive. `damages`: the last byte of the answer is another.
    `answer_bytes_max`: the connection ends after so many bytes of the answer's body; -1 for no
    answer at all. `drip_s`: each byte of the answer's body takes so long.
    """

    name: str
    answer: bytes | None = None
    flip: bool = False
    answer_bytes_max: int | None = None
    drip_s: float = 0.0
    hides: tuple[str, ...] = ()
    damages: bool = False


SLOW_DOWN = Fault("503 SlowDown", stub_store.error("503 Slow Down", "SlowDown"))
INTERNAL = Fault("500", stub_store.error("500 Internal Server Error", "InternalError"))
LOST = Fault("lost answer", answer_bytes_max=-1)
FLIP = Fault("flipped byte", flip=True)
CONFLICT = Fault("409", stub_store.error("409 Conflict", "ConditionalRequestConflict"))
PORTAL = Fault(
    "portal",
    stub_store.answer("200 OK", b"<html>Welcome</html>", store=False, Content_Type="text/html"),
)
EXPIRED = Fault("403 ExpiredToken", stub_store.error("403 Forbidden", "ExpiredToken"))
REVOKED = Fault("403 InvalidAccessKeyId", stub_store.error("403 Forbidden", "InvalidAccessKeyId"))
DENIED = Fault("403 AccessDenied", stub_store.error("403 Forbidden", "AccessDenied"))
NO_LOCK = Fault("no lock", hides=("x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date"))
NO_BUCKET = Fault("404 NoSuchBucket", stub_store.error("404 Not Found", "NoSuchBucket"))


def elsewhere(host: str) -> Fault:
    """Return the answer of a bucket that lies in another region, reached at `host`."""
    answer = stub_store.error(
        "301 Moved Permanently", "PermanentRedirect", f"<Endpoint>{host}</Endpoint>",
        x_amz_bucket_region="eu-central-1", Location=f"http://{host}/",
    )  # fmt: skip
    return Fault("301", answer)


def short(size_bytes: int) -> Fault:
    """Return the fault of an answer that ends after so many bytes of its body."""
    return Fault("short answer", answer_bytes_max=size_bytes)


@dataclass
class _Stage:
    matches: Callable[[str, str], bool]
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None


class StagedS3:
    """Listens on 127.0.0.1; forwards to `endpoint_url`. `_guard` guards stages and `asked`."""

    def __init__(self, endpoint_url: str) -> None:
        parts = urlsplit(endpoint_url)
        self._target = (parts.hostname, parts.port)
        self._guard = threading.Lock()
        self._stages: list[_Stage] = []
        self.asked: list[Asked] = []
        # How far ahead of the real server's clock the answers say it is.
        self.ahead = timedelta(0)
        self._ended = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
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
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    # --- staging

    def stage(self, operation: str, *faults: Fault, key: str = "") -> None:
        """Let the next requests of an operation ("" for any), of keys with `key` in them, meet."""
        with self._guard:
            self._stages.append(_Stage(_matching(operation, key), deque(faults)))

    def always(self, operation: str, fault: Fault, key: str = "") -> None:
        """Let every such request meet the fault until `clear`."""
        with self._guard:
            self._stages.append(_Stage(_matching(operation, key), always=fault))

    def clear(self) -> None:
        """Let everything through from now on, and count anew."""
        with self._guard:
            self._stages.clear()
            self.asked.clear()

    def count(self, operation: str = "", key: str = "") -> int:
        """Return how many such requests came."""
        matches = _matching(operation, key)
        with self._guard:
            return sum(matches(each.operation, each.path) for each in self.asked)

    # --- serving

    def meet(self, operation: str, path: str, body_bytes: int) -> Fault | None:
        """Note a request, and return the fault that it meets."""
        with self._guard:
            fault = None
            for stage in self._stages:
                if (stage.faults or stage.always) and stage.matches(operation, path):
                    fault = stage.always or stage.faults.popleft()
                    break
            self.asked.append(Asked(operation, path, body_bytes, fault.name if fault else ""))
            return fault

    def forward(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes):
        """Return the real server's answer: status line, headers, body."""
        line = http.client.HTTPConnection(*self._target, timeout=FORWARD_S)
        try:
            line.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                line.putheader(name, value)
            line.endheaders(body)
            answer = line.getresponse()
            told = [(name, self._shifted(name, value)) for name, value in answer.getheaders()]
            return answer.status, answer.reason, told, answer.read()
        finally:
            line.close()

    def _shifted(self, name: str, value: str) -> str:
        if name.lower() != "date" or not self.ahead:
            return value
        return format_datetime(parsedate_to_datetime(value) + self.ahead, usegmt=True)

    def pause(self, seconds: float) -> bool:
        """Wait, and tell whether it is time to end."""
        return self._ended.wait(seconds)


def _matching(operation: str, key: str) -> Callable[[str, str], bool]:
    def matches(asked: str, path: str) -> bool:
        return operation in ("", asked) and key in path

    return matches


def operation_of(method: str, path: str) -> str:
    """Return S3's name of a request, of those that this software makes."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    of_bucket = parts.path.strip("/").count("/") == 0
    for word, names in (
        ("uploads", {"POST": "CreateMultipartUpload", "GET": "ListMultipartUploads"}),
        ("partNumber", {"PUT": "UploadPart"}),
        ("uploadId", {"POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}),
        ("retention", {"PUT": "PutObjectRetention"}),
        ("versions", {"GET": "ListObjectVersions"}),
        ("versioning", {"GET": "GetBucketVersioning"}),
        ("object-lock", {"GET": "GetObjectLockConfiguration"}),
        ("list-type", {"GET": "ListObjectsV2"}),
    ):
        if word in query and method in names:
            return names[method]
    if of_bucket:
        return {"HEAD": "HeadBucket"}.get(method, method)
    return {
        "PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject",
    }.get(method, method)  # fmt: skip


def _handler(staged: StagedS3) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError, TimeoutError):
                self._handle()
                return
            self.close_connection = True

        def _handle(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            # parse_request has answered "100 Continue" where that was asked for.
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = staged.meet(operation_of(self.command, self.path), self.path, len(body))
            if fault is not None and fault.answer is not None:
                self._say(fault.answer)
                return
            if fault is not None and fault.flip and body:
                body = bytes([body[0] ^ 1]) + body[1:]
            names = {"connection", "expect"}
            headers = [each for each in self.headers.items() if each[0].lower() not in names]
            status, reason, told, content = staged.forward(self.command, self.path, headers, body)
            self._answer(fault or Fault(""), status, reason, told, content)

        def _say(self, raw: bytes) -> None:
            head, _, rest = raw.partition(b"\r\n\r\n")
            if self.command == "HEAD":
                rest = b""
            self.wfile.write(head + b"\r\n\r\n" + rest)
            self.wfile.flush()

        def _answer(self, fault: Fault, status, reason, told, content: bytes) -> None:
            limit = fault.answer_bytes_max
            if limit is not None and limit < 0:
                self._cut()
                return
            skipped = {"transfer-encoding", "connection", "content-length", *fault.hides}
            lines = [f"HTTP/1.1 {status} {reason}"]
            lines += [f"{name}: {value}" for name, value in told if name.lower() not in skipped]
            length = len(content)
            if self.command == "HEAD":
                length = next((v for n, v in told if n.lower() == "content-length"), 0)
            lines.append(f"Content-Length: {length}")
            self.wfile.write("\r\n".join(lines).encode() + b"\r\n\r\n")
            if fault.damages and content:
                content = content[:-1] + bytes([content[-1] ^ 1])
            if fault.drip_s:
                for at in range(len(content)):
                    self.wfile.write(content[at : at + 1])
                    if staged.pause(fault.drip_s):
                        self._cut()
                        return
                return
            self.wfile.write(content if limit is None else content[:limit])
            self.wfile.flush()
            if limit is not None:
                self._cut()

        def _cut(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_) -> None:
            """Say nothing."""

    return Handler
