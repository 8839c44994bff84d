"""Taking rights away from the own process, for code that decodes what strangers sent.

Owns the Linux calls that Python 3.11 has no names for. Used by the transcoding worker on itself.
Invariants: whatever the kernel permits is taken, and nothing taken can be got back; what the
kernel doesn't offer (a container without user namespaces, no Landlock) is reported, not fatal,
but the resource limits always hold.
"""

import contextlib
import ctypes
import resource
import struct

ADDRESS_SPACE_MAX_BYTES = 2 * 1024**3
FILE_SIZE_MAX_BYTES = 1024**3
OPEN_FILES_MAX = 24

_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_FILE_RIGHTS_ABI_1 = 0x1FFF

_libc = ctypes.CDLL(None, use_errno=True)


def drop_network_and_privileges() -> bool:
    """Leave the network for an empty namespace; no exec gains rights. Call it with one thread."""
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Root needs no user namespace; for others the user namespace is what permits the other one.
    return bool(
        _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0 or _libc.unshare(_CLONE_NEWNET) == 0
    )


def limit_resources() -> None:
    """Bound memory, files and processes; no core dump, which would hold pixel data."""
    for kind, limit in (
        (resource.RLIMIT_AS, ADDRESS_SPACE_MAX_BYTES),
        (resource.RLIMIT_FSIZE, FILE_SIZE_MAX_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES_MAX),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)  # noqa: PLW2901 - a service manager may have set less
        resource.setrlimit(kind, (limit, limit))


def limit_processor(seconds: int) -> None:
    """Let the kernel end this process after that many further seconds of processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + seconds
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def close_file_system() -> bool:
    """Forbid every further opening, making and removing of files (Landlock, no rule allowed)."""
    attributes = struct.pack("=Q", _LANDLOCK_FILE_RIGHTS_ABI_1)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    ruleset = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, buffer, len(attributes), 0)
    if ruleset < 0:
        return False
    return bool(_libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
