"""Listening sockets that the service manager passes on (sd_listen_fds(3)).

It holds them open while the daemon restarts, and the kernel queues who connects meanwhile: nobody
is refused. Invariants: what was passed is taken once and by the process it was meant for, and no
child inherits it; a socket that is not wanted is closed, and said.
"""

import os
import socket

from appliance.foundation import log

FIRST_FD = 3
FDS_MAX = 16
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

_log = log.get("daemon")


def take_listeners() -> list[socket.socket]:
    """Return the listening TCP sockets that were passed to this process; none the second time."""
    pid, count, _ = (os.environ.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for fd in range(FIRST_FD, FIRST_FD + min(int(count), FDS_MAX)):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        if _listens(sock):
            found.append(sock)
        else:
            _log.warning("inherited_socket_unused", fd=fd, cause="it is no TCP listener")
            sock.close()
    return found


def _listens(sock: socket.socket) -> bool:
    return (
        sock.family in {socket.AF_INET, socket.AF_INET6}
        and sock.type == socket.SOCK_STREAM
        and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    )


def assign(
    listeners: list[socket.socket], host: str, ports: list[int]
) -> list[socket.socket | None]:
    """Return for each port the socket that listens on it, None where there is none.

    The configuration decides: a socket on another port is closed, and the port that is configured
    is opened by the daemon itself. One on another address is used, for the port can't be had twice.
    """
    by_port = {sock.getsockname()[1]: sock for sock in reversed(listeners)}
    chosen = [by_port.get(port) for port in ports]
    for sock in listeners:
        address, port = sock.getsockname()[:2]
        if sock not in chosen:
            _log.warning("inherited_socket_unused", port=port, configured=ports)
            sock.close()
        elif address != host:
            _log.warning("inherited_socket_elsewhere", address=address, configured=host)
    return chosen
