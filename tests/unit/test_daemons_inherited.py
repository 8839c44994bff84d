"""Sockets that the service manager passes on are taken by whom they are for, once."""

import fcntl
import json
import socket
import subprocess
import sys

import pytest

from appliance.daemons.inherited import assign

CHILD = """
import json, os
from appliance.daemons.inherited import take_listeners

found = take_listeners()
print(json.dumps({
    "ports": [sock.getsockname()[1] for sock in found],
    "inheritable": [sock.get_inheritable() for sock in found],
    "again": len(take_listeners()),
    "environment": [name for name in os.environ if name.startswith("LISTEN_")],
}))
"""


def take(pid: str, *socks: socket.socket) -> dict[str, object]:
    """Start a process as systemd does: with sockets from descriptor 3 on."""
    moves = " ".join(f"{3 + number}<&{sock.fileno()}" for number, sock in enumerate(socks))
    script = f'exec {moves}; LISTEN_PID={pid} LISTEN_FDS={len(socks)} exec "$0" -c "$1"'
    ran = subprocess.run(
        ["/bin/bash", "-c", script, sys.executable, CHILD], timeout=110, check=True,
        capture_output=True, text=True, pass_fds=[sock.fileno() for sock in socks],
    )  # fmt: skip
    found: dict[str, object] = json.loads(ran.stdout.splitlines()[-1])
    return found


def listening() -> socket.socket:
    """Return a listener whose descriptor is far from those that a service manager uses."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return socket.socket(fileno=_high(sock))


def _high(sock: socket.socket) -> int:
    return fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 100)


def test_listeners_are_taken_once_and_by_no_child() -> None:
    with listening() as first, listening() as second:
        assert take("$$", first, second) == {
            "ports": [first.getsockname()[1], second.getsockname()[1]],
            "inheritable": [False, False],
            "again": 0,
            "environment": [],
        }


def test_sockets_for_another_process_are_not_taken() -> None:
    """A variable that was inherited from somebody who got sockets means nothing."""
    with listening() as sock:
        assert take("1", sock)["ports"] == []


def test_what_is_no_listener_is_closed() -> None:
    with listening() as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        high = socket.socket(fileno=_high(datagrams))
        with high:
            assert take("$$", high, sock)["ports"] == [sock.getsockname()[1]]


def test_ports_of_the_configuration_choose() -> None:
    """In their order; a socket that nobody asked for is closed, a port without one is opened."""
    plain, over_tls, stranger = listening(), listening(), listening()
    plain_port, tls_port = plain.getsockname()[1], over_tls.getsockname()[1]
    with plain, over_tls, stranger:
        chosen = assign([stranger, over_tls, plain], "127.0.0.1", [plain_port, tls_port])
        assert chosen == [plain, over_tls]
        assert stranger.fileno() == -1
        assert assign([plain], "127.0.0.1", [plain_port, tls_port]) == [plain, None]
        assert plain.fileno() != -1


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_socket_on_another_address_is_used_all_the_same(host: str) -> None:
    """The port can't be had twice, and a receiver that does not start receives nothing."""
    with listening() as sock:
        assert assign([sock], host, [sock.getsockname()[1]]) == [sock]
