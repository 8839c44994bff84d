"""A small TCP proxy between a client and a server, which can delay, cut and count.

Bytes are counted per second on their way up. Faults: `cut()` ends what is open, `refuse` ends what
comes, `delay_s` holds every piece, `cut_up_after_bytes` ends a connection in the middle of a body,
`cut_answer_after_bytes` when an answer comes after so many bytes went up, `stalled` stops moving
bytes while the connections stay open.
"""

import contextlib
import select
import socket
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

PIECE_BYTES = 64 * 1024


class TcpProxy:
    """Listens on `host`:`port` and forwards to `target`. One thread a connection."""

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1") -> None:
        self._target = target
        self.host = host
        self._listener = socket.create_server((host, 0))
        self.port = int(self._listener.getsockname()[1])
        self._guard = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        self._moving = threading.Event()
        self._moving.set()
        self.connections_count = 0
        self.up_bytes = 0
        self.down_bytes = 0
        self.up_bytes_by_second: Counter[int] = Counter()
        self.delay_s = 0.0
        self.refuse = False
        self.cut_up_after_bytes: int | None = None
        self.cut_answer_after_bytes: int | None = None
        self.first_up_s: float | None = None
        self.last_up_s = 0.0

    @property
    def url(self) -> str:
        """Return the proxy's address as an http URL."""
        return f"http://{self.host}:{self.port}"

    @property
    def stalled(self) -> bool:
        """Whether bytes stand still while connections stay open."""
        return not self._moving.is_set()

    @stalled.setter
    def stalled(self, value: bool) -> None:
        if value:
            self._moving.clear()
        else:
            self._moving.set()

    def reset_counts(self) -> None:
        """Begin counting anew."""
        with self._guard:
            self.up_bytes = self.down_bytes = self.connections_count = 0
            self.up_bytes_by_second.clear()
            self.first_up_s = None

    def cut(self) -> None:
        """End every open connection, as a cut line looks to both sides."""
        with self._guard:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._moving.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _start(self, target, *arguments) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse or self._stopped.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self.connections_count += 1
            with self._guard:
                self._open |= {near, far}
            self._start(self._carry, near, far)

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        """Move bytes both ways until either side ends or a fault says so."""
        sent_up = 0
        try:
            while not self._stopped.is_set():
                ready, _, _ = select.select([near, far], [], [], 0.5)
                for source in ready:
                    piece = source.recv(PIECE_BYTES)
                    if not piece:
                        return
                    self._moving.wait()
                    if self.delay_s:
                        time.sleep(self.delay_s)
                    if source is near:
                        sent_up += len(piece)
                        self._count_up(len(piece))
                        far.sendall(piece)
                        limit = self.cut_up_after_bytes
                        if limit is not None and sent_up >= limit:
                            return
                    else:
                        limit = self.cut_answer_after_bytes
                        if limit is not None and sent_up >= limit:
                            return
                        self.down_bytes += len(piece)
                        near.sendall(piece)
        except OSError:
            return
        finally:
            with self._guard:
                self._open -= {near, far}
            near.close()
            far.close()

    def _count_up(self, size_bytes: int) -> None:
        now_s = time.monotonic()
        with self._guard:
            self.up_bytes += size_bytes
            if self.first_up_s is None:
                self.first_up_s = now_s
            self.last_up_s = now_s
            self.up_bytes_by_second[int(now_s)] += size_bytes
