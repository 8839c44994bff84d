"""The public age test vectors (C2SP CCTV), from the npm package that carries them.

The package is fetched once, by npm, into `.cache/` of the working tree and held to its sha512. A
machine without npm or network has no vectors: the tests that need them then say so and skip.
"""

import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "cctv-age"
VERSION = "0.2.0"
SHA512 = "1fiGAaWr+snqgu8+uCC7qPeApAuueOESET2npKe0FVLY+Huf+Kkia89Rybx/uoGNCml31SgAjiQIeFOY4K3New=="
CACHE = Path(__file__).parents[2] / ".cache" / "age-vectors"
FETCH_TIMEOUT_S = 60

_FILE = re.compile(r'var (\w+)_default = __toBinary\("([^"]*)"\)')


class VectorsUnavailable(Exception):
    """The vectors are not here and could not be fetched."""


@dataclass(frozen=True)
class AgeVector:
    """One test file: what to expect of it, with which identities, and the age file itself.

    `payload_sha256` is hex, of the plaintext or of as much of it as comes before the failure.
    """

    name: str
    expect: str
    payload_sha256: str | None
    identities: tuple[str, ...]
    armored: bool
    passphrase: bool
    sealed: bytes


def load() -> dict[str, AgeVector]:
    """Return every vector by name; VectorsUnavailable, with the reason, when there are none."""
    package = CACHE / f"{PACKAGE}-{VERSION}.tgz"
    if not package.exists():
        _fetch(package)
    digest = hashlib.sha512(package.read_bytes()).digest()
    if base64.b64encode(digest).decode() != SHA512:
        package.unlink()
        raise AssertionError(f"{PACKAGE} {VERSION} is not the package that was pinned")
    with tarfile.open(package) as tar:
        script = tar.extractfile("package/index.js")
        assert script is not None
        text = script.read().decode()
    return {name: _parse(name, base64.b64decode(raw)) for name, raw in _FILE.findall(text)}


def _fetch(package: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise VectorsUnavailable("npm is not installed")
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(CACHE)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=FETCH_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as cause:
        raise VectorsUnavailable(f"npm could not fetch {PACKAGE} {VERSION}") from cause
    assert package.exists()


def _parse(name: str, raw: bytes) -> AgeVector:
    head, _, sealed = raw.partition(b"\n\n")
    fields: dict[str, list[str]] = {}
    for line in head.decode().splitlines():
        key, _, value = line.partition(": ")
        fields.setdefault(key, []).append(value)
    if fields.get("compressed") == ["zlib"]:
        sealed = zlib.decompress(sealed)
    return AgeVector(
        name=name,
        expect=fields["expect"][0],
        payload_sha256=fields.get("payload", [None])[0],
        identities=tuple(fields.get("identity", ())),
        armored="armored" in fields,
        passphrase="passphrase" in fields,
        sealed=sealed,
    )
