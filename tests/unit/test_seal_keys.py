"""Identities, recipients and signing keys: their files, their texts, and that no secret leaks."""

import os
import shutil
import subprocess
from pathlib import Path

import pyrage
import pytest

from appliance.foundation.errors import ConfigurationError, KeyUnavailable, OutOfSpace
from appliance.foundation.files import FileSystem
from appliance.seal import bech32
from appliance.seal.age import decrypt_bytes, encrypt_bytes
from appliance.seal.identity import (
    Identity,
    load_identity,
    new_identity_file,
    parse_identities,
    recipient_bytes,
)
from appliance.seal.signing import SigningKey, check_public_text, verify
from tests.support import pack_samples as samples


def test_an_identity_file_is_private_and_age_reads_it(tmp_path: Path):
    """The file is age's own format, with the recipient for people to read."""
    path = str(tmp_path / "key")
    identity = new_identity_file(path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert f"# public key: {identity.recipient}\n" in Path(path).read_text()
    if shutil.which("age-keygen"):
        done = subprocess.run(
            ["age-keygen", "-y", path], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == identity.recipient
    (loaded,) = load_identity(path)
    assert decrypt_bytes(encrypt_bytes(b"x", [identity.recipient]), [loaded]) == b"x"


def test_texts_of_keys_are_those_of_age():
    """Our Bech32 and age's agree in both directions."""
    theirs = pyrage.x25519.Identity.generate()
    ours = Identity.parse(str(theirs))
    assert ours.recipient == str(theirs.to_public())
    assert ours.secret_text() == str(theirs)
    assert recipient_bytes(ours.recipient) == ours.public_bytes


def test_a_key_file_is_never_overwritten(tmp_path: Path):
    """What was sealed to a key is lost with the key."""
    path = str(tmp_path / "key")
    new_identity_file(path)
    before = Path(path).read_bytes()
    for make in (new_identity_file, SigningKey.create):
        with pytest.raises(KeyUnavailable, match="never overwritten"):
            make(path)
    assert Path(path).read_bytes() == before
    with pytest.raises(KeyUnavailable, match="no such folder"):
        new_identity_file(str(tmp_path / "nowhere" / "key"))


def test_a_key_file_on_a_full_disk_is_no_half_key(tmp_path: Path):
    """The name stays free for the next attempt."""
    path = str(tmp_path / "key")
    with pytest.raises(OutOfSpace):
        new_identity_file(path, samples.FailingFiles(1, samples.full_disk))
    assert not os.path.exists(path)
    new_identity_file(path, FileSystem())


def test_load_identity_gives_all_of_a_rotation_in_their_order(tmp_path: Path):
    """The first is current; those behind it still open what was sealed before."""
    new, old = Identity.generate(), Identity.generate()
    path = tmp_path / "keys"
    path.write_text(f"# new\n{new.secret_text()}\n\n# old\n  {old.secret_text()}\n")
    path.chmod(0o600)
    loaded = load_identity(str(path))
    assert [identity.recipient for identity in loaded] == [new.recipient, old.recipient]
    assert decrypt_bytes(encrypt_bytes(b"x", [old.recipient]), loaded) == b"x"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int):
    """The hint is the command that repairs it."""
    identity, signing = str(tmp_path / "i"), str(tmp_path / "s")
    new_identity_file(identity)
    SigningKey.create(signing)
    for path, load in ((identity, load_identity), (signing, SigningKey.load)):
        os.chmod(path, mode)
        with pytest.raises(KeyUnavailable) as caught:
            load(path)
        assert caught.value.hint == f"Run: chmod 600 {path}"


def test_a_credential_is_read_from_the_folder_of_systemd(tmp_path: Path, monkeypatch):
    """systemd's own modes are taken as they are."""
    identity = new_identity_file(str(tmp_path / "azekura-identity"))
    os.chmod(tmp_path / "azekura-identity", 0o440)
    with pytest.raises(KeyUnavailable, match="CREDENTIALS_DIRECTORY"):
        load_identity("credential:azekura-identity")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load_identity("credential:azekura-identity")[0].recipient == identity.recipient
    for name in ("missing", "", "..", "a/b", "/etc/passwd"):
        with pytest.raises(KeyUnavailable):
            load_identity(f"credential:{name}")


def test_no_error_or_repr_shows_a_secret(tmp_path: Path):
    """Not even when the secret line itself is what is wrong."""
    identity = Identity.generate()
    secret = identity.secret_text()
    texts = [secret[:-1], secret[:-1] + "b", secret.lower(), secret[:30] + "\n" + secret[30:]]
    for text in texts:
        with pytest.raises(ValueError, match="line 1") as caught:
            parse_identities(text)
        assert secret[20:40] not in str(caught.value).upper()
    path = tmp_path / "key"
    for content in [text.encode() for text in texts] + [b"\xff" + secret.encode(), b"", b"#\n"]:
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyUnavailable) as refused:
            load_identity(str(path))
        assert secret[20:40] not in f"{refused.value} {refused.value.__cause__}".upper()
    assert repr(identity) == f"Identity({identity.recipient})"


@pytest.mark.parametrize(
    "text", ["", "age1", "age1qqqq", "AGE-SECRET-KEY-1QQ", "age1yubikey1q2w", "x" * 5000]
)
def test_what_is_no_recipient_is_refused_with_a_reason(text: str):
    """The configuration check names the line that is wrong."""
    with pytest.raises(ConfigurationError, match="not an age recipient"):
        recipient_bytes(text)


def test_bech32_sees_every_single_mistyped_character():
    """A checksum of six characters finds any one error."""
    text = Identity.generate().recipient
    for at in range(4, len(text)):
        wrong = text[:at] + ("p" if text[at] != "p" else "z") + text[at + 1 :]
        with pytest.raises(ValueError, match="checksum"):
            bech32.decode(wrong, "age")
    for data in (b"", b"\0", bytes(range(40))):
        assert bech32.decode(bech32.encode("any", data), "any") == data


def test_a_signature_holds_for_its_content_and_key_only(tmp_path: Path):
    """Who wrote a ledger entry is proved by the key that the other nodes are configured with."""
    path = str(tmp_path / "sign")
    key = SigningKey.create(path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    signature = SigningKey.load(path).sign(b"header")
    assert len(signature) == 64
    assert verify(key.public_text, b"header", signature)
    assert not verify(key.public_text, b"Header", signature)
    assert not verify(key.public_text, b"header", signature[:-1] + b"\0\0"[:1])
    assert not verify(key.public_text, b"header", b"")
    other = SigningKey.create(str(tmp_path / "other"))
    assert not verify(other.public_text, b"header", signature)
    assert repr(key) == f"SigningKey({key.public_text})"
    assert key.public_text.startswith("azekura-sign1")


def test_openssl_can_make_the_signing_key(tmp_path: Path):
    """The file is ordinary PEM."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = str(tmp_path / "sign.pem")
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    os.chmod(path, 0o600)
    key = SigningKey.load(path)
    assert verify(key.public_text, b"x", key.sign(b"x"))


def test_what_is_no_signing_key_is_refused(tmp_path: Path):
    """An identity in place of a signing key, a public key in place of a secret one, or noise."""
    path = str(tmp_path / "identity")
    new_identity_file(path)
    with pytest.raises(KeyUnavailable, match="Ed25519"):
        SigningKey.load(path)
    with pytest.raises(KeyUnavailable):
        SigningKey.load(str(tmp_path / "missing"))
    for text in ("", "azekura-sign1", Identity.generate().recipient):
        with pytest.raises(ConfigurationError):
            check_public_text(text)
        with pytest.raises(ConfigurationError):
            verify(text, b"", bytes(64))
