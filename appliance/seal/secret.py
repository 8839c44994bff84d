"""Reading and writing secret files: a systemd credential by name, or a file of mode 0600.

Invariant: no error text quotes what a secret file holds.
"""

import os

from appliance.foundation.errors import KeyUnavailable

SECRET_MAX_BYTES = 64 * 1024
_CREDENTIAL = "credential:"


def read_secret(spec: str, what: str) -> bytes:
    """Return the content of `credential:NAME` or of the file at a path.

    A file that anyone but its owner may touch is refused, as ssh refuses it. The directory of
    credentials is systemd's, private to the service. Raises KeyUnavailable.
    """
    operation = f"read {what}"
    if spec.startswith(_CREDENTIAL):
        path = _credential_path(spec.removeprefix(_CREDENTIAL), operation)
    else:
        path = spec
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as cause:
        raise KeyUnavailable(operation, spec, cause.strerror or "", _hint(spec)) from cause
    try:
        if path == spec and os.fstat(fd).st_mode & 0o077:
            raise KeyUnavailable(
                operation, spec, "others than its owner may read it", f"Run: chmod 600 {spec}"
            )
        return os.read(fd, SECRET_MAX_BYTES)
    except OSError as cause:
        raise KeyUnavailable(operation, spec, cause.strerror or "", _hint(spec)) from cause
    finally:
        os.close(fd)


def _credential_path(name: str, operation: str) -> str:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not name or "/" in name or name.startswith("."):
        raise KeyUnavailable(operation, _CREDENTIAL + name, "that is no name of a credential")
    if not folder:
        raise KeyUnavailable(
            operation,
            _CREDENTIAL + name,
            "CREDENTIALS_DIRECTORY is not set",
            "Start the daemon by its systemd unit, or give the path of a file",
        )
    return os.path.join(folder, name)


def _hint(spec: str) -> str:
    if spec.startswith(_CREDENTIAL):
        return "Put it into /etc/credstore, and restart the unit"
    return "Check the path in the configuration, and that the daemon's user owns the file"
