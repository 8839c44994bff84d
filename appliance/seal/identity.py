"""age identities (who can open) and recipients (to whom is sealed), X25519 only.

Owns the text forms of both and the identity file. Must not be asked to print a secret: `repr` and
every error show recipients at most.
"""

import os

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from appliance.foundation.clock import Clock, SystemClock, isoformat
from appliance.foundation.errors import ConfigurationError, KeyUnavailable, StorageFailed
from appliance.foundation.files import FileSystem
from appliance.seal import bech32
from appliance.seal.secret import read_secret

RECIPIENT_PREFIX = "age"
IDENTITY_PREFIX = "age-secret-key-"


class Identity:
    """A secret X25519 key; `recipient` is the text that others seal to."""

    __slots__ = ("_key", "public_bytes", "recipient")

    def __init__(self, secret: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self.public_bytes = self._key.public_key().public_bytes_raw()
        self.recipient = bech32.encode(RECIPIENT_PREFIX, self.public_bytes)

    @classmethod
    def generate(cls) -> "Identity":
        """Return a new identity from the system's randomness."""
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> "Identity":
        """Return the identity of `AGE-SECRET-KEY-1…`; ValueError, which does not quote it, else."""
        if text != text.upper():
            raise ValueError("it is not all in upper case")
        return cls(bech32.decode_key(text, IDENTITY_PREFIX))

    def secret_text(self) -> str:
        """Return `AGE-SECRET-KEY-1…`, to be written to the identity file and nowhere else."""
        return bech32.encode(IDENTITY_PREFIX, self._key.private_bytes_raw()).upper()

    def exchange(self, share: bytes) -> bytes:
        """Return the secret shared with an ephemeral share; ValueError when the share is weak."""
        return self._key.exchange(X25519PublicKey.from_public_bytes(share))

    def __repr__(self) -> str:
        return f"Identity({self.recipient})"


def recipient_bytes(text: str) -> bytes:
    """Return the 32 bytes of an `age1…` recipient; ConfigurationError when it is none."""
    try:
        return bech32.decode_key(text, RECIPIENT_PREFIX, lower_only=True)
    except ValueError as cause:
        raise ConfigurationError(
            text[:80], (f"not an age recipient: {cause}",), "Copy the whole line that begins age1"
        ) from cause


def load_identity(spec: str) -> tuple[Identity, ...]:
    """Return the identities of `credential:NAME` or of a file of mode 0600, in their order.

    The first is the current one, whose recipient new objects are sealed to; those behind it open
    what was sealed before a rotation. Raises KeyUnavailable.
    """
    try:
        return parse_identities(read_secret(spec, "identity").decode())
    except ValueError as cause:
        raise KeyUnavailable(
            "read identity", spec, _safe(cause), "It must hold lines AGE-SECRET-KEY-1…"
        ) from None


def parse_identities(text: str) -> tuple[Identity, ...]:
    """Return the identities in the text of an identity file; ValueError names the bad line."""
    identities: list[Identity] = []
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        try:
            identities.append(Identity.parse(entry))
        except ValueError as cause:
            raise ValueError(f"line {number}: {cause}") from None
    if not identities:
        raise ValueError("there is no identity in it")
    return tuple(identities)


def _safe(cause: ValueError) -> str:
    # The text of a UnicodeDecodeError is harmless, but its object carries the file's bytes.
    return "it is not text" if isinstance(cause, UnicodeDecodeError) else str(cause)


def new_identity_file(
    path: str, files: FileSystem | None = None, clock: Clock | None = None
) -> Identity:
    """Write a new identity in age's own format, mode 0600, durable; return it.

    An existing file is never touched: KeyUnavailable.
    """
    identity = Identity.generate()
    created = isoformat((clock or SystemClock()).now())
    text = f"# created: {created}\n# public key: {identity.recipient}\n{identity.secret_text()}\n"
    write_secret_file(path, text.encode(), files or FileSystem())
    return identity


def write_secret_file(path: str, content: bytes, files: FileSystem) -> None:
    """Create a secret file, mode 0600, durable; KeyUnavailable when the name is taken."""
    try:
        fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileNotFoundError as cause:
        raise KeyUnavailable("create key file", path, "there is no such folder") from cause
    except StorageFailed as cause:
        if isinstance(cause.__cause__, FileExistsError):
            raise KeyUnavailable(
                "create key file", path, "the file exists", "Keys are never overwritten"
            ) from cause
        raise
    try:
        files.pwritev(fd, [content], 0)
        files.fdatasync(fd)
    except BaseException:
        # Half a key would hold the name, and nobody could tell that it opens nothing.
        files.close(fd)
        files.unlink(path)
        raise
    files.close(fd)
    files.fsync_directory(os.path.dirname(os.path.abspath(path)))
