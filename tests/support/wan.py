"""A wire of its own to the bucket, which can lose packets, go silent, or be pulled out.

A network namespace stands for the hospital, joined to this machine's by a pair of virtual
interfaces; the bucket listens on this end. What is to use the wire runs on a thread that has
entered the namespace: its sockets, and those of threads that it starts, are there. Faults are rules
of nftables on the hospital's end. Needs root and a kernel with both; `unable` says what is missing.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

_CLONE_NEWNET = 0x40000000
_numbers = itertools.count(os.getpid() % 4000 * 4)
_RULES = """
flush ruleset
table inet wan {{
  chain up {{
    type filter hook output priority 0;
    oifname != "lo" {rule}
  }}
  chain down {{
    type filter hook input priority 0;
    iifname != "lo" {rule}
  }}
}}
"""


@functools.cache
def unable() -> str:
    """Return why this machine can't make such a wire, "" when it can."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    try:
        with Wan() as wan:
            wan.lose(5)
    except subprocess.CalledProcessError as error:
        return f"{error.cmd}: {error.stderr.strip()}"
    return ""


class Wan:
    """The wire. `host` is the address of this end."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.name = f"azekura-{number}"
        self._ours, self._theirs = f"azo{number}", f"azt{number}"
        # 198.18.0.0/15 is for tests of networks (RFC 2544).
        base = f"198.18.{number // 64 % 256}.{number % 64 * 4}".rpartition(".")
        self.host = f"{base[0]}.{int(base[2]) + 1}"
        self._far = f"{base[0]}.{int(base[2]) + 2}"

    def __enter__(self) -> Self:
        _run("ip", "netns", "add", self.name)
        try:
            _run("ip", "link", "add", self._ours, "type", "veth", "peer", "name", self._theirs,
                 "netns", self.name)  # fmt: skip
            _run("ip", "address", "add", f"{self.host}/30", "dev", self._ours)
            _run("ip", "link", "set", self._ours, "up")
            self._inside("ip", "address", "add", f"{self._far}/30", "dev", self._theirs)
            self._inside("ip", "link", "set", "lo", "up")
            self.plug_in()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("ip", "netns", "delete", self.name)
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("ip", "link", "delete", self._ours)

    def _inside(self, *command: str, text: str = "") -> None:
        _run("ip", "netns", "exec", self.name, *command, text=text)

    def _rule(self, rule: str) -> None:
        self._inside("nft", "-f", "-", text=_RULES.format(rule=rule))

    # --- faults

    def lose(self, percent: int) -> None:
        """Lose so many packets of a hundred, each way."""
        self._rule(f"numgen random mod 100 < {percent} drop")

    def fall_silent(self) -> None:
        """Let new connections be made, and nothing more pass on any: half-open TCP."""
        self._rule("tcp flags & syn == 0 drop")

    def block(self) -> None:
        """Let nothing pass."""
        self._rule("drop")

    def clear(self) -> None:
        """Let everything pass."""
        self._inside("nft", "flush", "ruleset")

    def pull_out(self) -> None:
        """Take the link down."""
        self._inside("ip", "link", "set", self._theirs, "down")

    def plug_in(self) -> None:
        """Take the link up."""
        self._inside("ip", "link", "set", self._theirs, "up")

    # --- using it

    def run(self, body: Callable[[], Any]) -> Any:
        """Run `body` on a thread inside the namespace, and return what it returns."""
        found: list[Any] = []
        failed: list[BaseException] = []

        def enter() -> None:
            try:
                enter_namespace(f"/run/netns/{self.name}")
                found.append(body())
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                failed.append(error)

        thread = threading.Thread(target=enter, name="wan")
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]


def enter_namespace(path: str) -> None:
    """Move the calling thread into a network namespace, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY)
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(fd)


def _run(*command: str, text: str = "") -> None:
    subprocess.run(command, input=text, text=True, capture_output=True, check=True, timeout=30)
