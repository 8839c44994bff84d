"""Ed25519 signatures on ledger headers and checkpoints: who wrote them.

Encryption to public recipients authenticates nobody; this does. Must not hold state.
"""

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from appliance.foundation.errors import ConfigurationError, KeyUnavailable
from appliance.foundation.files import FileSystem
from appliance.seal import bech32
from appliance.seal.identity import write_secret_file
from appliance.seal.secret import read_secret

PUBLIC_PREFIX = "azekura-sign"
SIGNATURE_BYTES = 64


class SigningKey:
    """This node's secret signing key; `public_text` is what the other nodes are configured with."""

    __slots__ = ("_key", "public_text")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_text = bech32.encode(PUBLIC_PREFIX, key.public_key().public_bytes_raw())

    @classmethod
    def load(cls, spec: str) -> "SigningKey":
        """Return the key in `credential:NAME` or a PEM (PKCS 8) file of mode 0600.

        Raises KeyUnavailable.
        """
        pem = read_secret(spec, "signing key")
        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyUnavailable("read signing key", spec, "it is no Ed25519 key in PEM (PKCS 8)")
        return cls(key)

    @classmethod
    def create(cls, path: str, files: FileSystem | None = None) -> "SigningKey":
        """Write a new key, mode 0600, durable; KeyUnavailable when the file exists."""
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_secret_file(path, pem, files or FileSystem())
        return cls(key)

    def sign(self, content: bytes) -> bytes:
        """Return the 64 bytes of the signature (RFC 8032)."""
        return self._key.sign(content)

    def __repr__(self) -> str:
        return f"SigningKey({self.public_text})"


def check_public_text(public_text: str) -> None:
    """Raise ConfigurationError when a text is no public signing key."""
    _public_key(public_text)


def verify(public_text: str, content: bytes, signature: bytes) -> bool:
    """Return whether the holder of the key signed exactly this content.

    Raises ConfigurationError when `public_text` is no public signing key.
    """
    key = _public_key(public_text)
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _public_key(public_text: str) -> Ed25519PublicKey:
    try:
        raw = bech32.decode_key(public_text, PUBLIC_PREFIX, lower_only=True)
    except ValueError as cause:
        raise ConfigurationError(
            public_text[:100],
            (f"not a public signing key: {cause}",),
            f"Copy the whole text that begins {PUBLIC_PREFIX}1",
        ) from cause
    return Ed25519PublicKey.from_public_bytes(raw)
