"""The worked example of the ledger format's page is what the code writes today.

And what the page tells an auditor to type works: age, zcat, sha256sum, and Python's own library.
"""

import gzip
import hashlib
import os
import re
import subprocess
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.archive.checkpoint import checkpoint_pieces
from appliance.archive.checkpoint_name import CheckpointName, Range, keys_digest
from appliance.archive.ledger_entry import (
    FIRST_PREVIOUS,
    Entry,
    build_entry,
    check_link,
    entry_name,
    open_entry,
    open_lines,
    seal_entry,
)
from appliance.archive.records import (
    Context,
    Erased,
    Held,
    ListedInstance,
    Opened,
    Origin,
    PackRecord,
    Retained,
)
from appliance.seal.age import encrypt_bytes
from appliance.seal.identity import Identity
from appliance.seal.signing import SigningKey

PAGE = Path(__file__).parents[2] / "docs" / "internals" / "ledger-format.md"
INCARNATION = "5b0e7d3c9a1f4e2d8c6b5a4938271605"
PACK_ID = "01jd2m6yt0v9rk3sa5xw7hq4ze"
# Fixed, so that the example stays: nobody's keys.
SIGNING_KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
IDENTITY = Identity(bytes(range(32, 64)))


def example_record() -> PackRecord:
    dataset_sha256 = "f9864780b8e1212983e6da79c8d181c48adc6550cb141257eca7b88855dd5300"
    return PackRecord(
        pack_id=PACK_ID,
        key=f"packs/2024/11/23/{PACK_ID}.tar.age",
        version_id="3sL4kqtJlcpXroDTDmJ.rmSpXd3dIbrH",
        size_bytes=7000,
        plain_size_bytes=6656,
        checksum="sha256:" + "A" * 43 + "=",
        lock_mode="COMPLIANCE",
        locked_until_us=1_890_180_000_000_000,
        age_header=b"age-encryption.org/v1\n...",
        file_key=bytes(16),
        headers_offset=4096,
        headers_length=351,
        verified_at_us=1_732_400_042_000_000,
        origins=[
            Origin(
                "CT1", "AZEKURA", "192.0.2.7", "", "", "1.2.840.10008.1.2.1",
                "1.2.840.10008.5.1.4.1.1.2",
            )
        ],
        contexts=[
            Context("1.2.3", "1.2.3.4", {0x00100010: "Yamada^Tarou", 0x00100020: "4711"}),
        ],
        instances=[
            ListedInstance(
                "1.2.3.4.5", 0, 0, 1774, 36, bytes.fromhex(dataset_sha256),
                1_732_400_000_123_456, {0x00080018: "1.2.3.4.5"},
            )
        ],
    )  # fmt: skip


def example_entries() -> tuple[Entry, Entry]:
    opened = Opened(
        incarnation=INCARNATION, software="azekura 0.1.0", at="2024-11-23T22:12:58.000000Z"
    )
    first = build_entry(
        "site-a", 1, INCARNATION, "2024-11-23T22:12:58.250000Z", FIRST_PREVIOUS, [opened],
        SIGNING_KEY,
    )  # fmt: skip
    second = build_entry(
        "site-a", 2, INCARNATION, "2024-11-23T22:14:02.500000Z", first.header_sha256,
        [example_record()], SIGNING_KEY,
    )  # fmt: skip
    return first, second


def keeping_records() -> tuple[Retained, Held, Erased]:
    pack = example_record()
    return (
        Retained(
            pack_id=PACK_ID,
            lock_mode="COMPLIANCE",
            locked_until_us=2_047_860_000_000_000,
            reason="the study went on",
            at="2029-11-23T01:00:09.000000Z",
        ),
        Held(
            record_id="c0ffee00" * 4,
            study_instance_uid="1.2.3",
            on=True,
            by="suzuki",
            reason="case 2029-117",
            at="2029-12-01T00:30:00.000000Z",
        ),
        Erased(
            pack_id=PACK_ID,
            key=pack.key,
            version_id=pack.version_id,
            by="suzuki",
            reason="plan 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
            at="2035-01-15T02:00:00.000000Z",
        ),
    )


def test_the_page_shows_the_records_of_keeping() -> None:
    """Extension, hold and erasure, as they are written."""
    lines = [msgspec.json.encode(record).decode() for record in keeping_records()]
    assert "```\n" + "\n".join(lines) + "\n```" in PAGE.read_text()


def plain_of(entry: Entry, folder: Path) -> str:
    """Return what `age -d -i KEY ENTRY | zcat` prints, by these very commands."""
    key, sealed = folder / "recovery.key", folder / entry_name(entry.header.sequence)
    key.write_text(IDENTITY.secret_text() + "\n")
    sealed.write_bytes(seal_entry(entry, [IDENTITY.recipient]))
    done = subprocess.run(
        f"age -d -i {key} {sealed} | zcat", shell=True, capture_output=True, text=True, check=True,
        timeout=30,
    )  # fmt: skip
    return done.stdout


def test_the_page_shows_both_entries_byte_for_byte(tmp_path: Path) -> None:
    """Whoever has to read a ledger without this software can trust the page."""
    page = PAGE.read_text()
    for entry in example_entries():
        assert f"```\n{plain_of(entry, tmp_path)}```" in page


def test_the_page_shows_the_hashes_of_both_headers() -> None:
    page = PAGE.read_text()
    for entry in example_entries():
        assert f"`{entry.header_sha256}`" in page


def test_the_example_is_a_sound_chain() -> None:
    first, second = example_entries()
    signers = {SIGNING_KEY.public_text}
    for entry, sequence, previous in (
        (first, 1, FIRST_PREVIOUS),
        (second, 2, first.header_sha256),
    ):
        opened = open_entry(seal_entry(entry, [IDENTITY.recipient]), [IDENTITY])
        assert opened == entry
        check_link(opened, "site-a", sequence, previous, signers)


def example_checkpoint() -> tuple[CheckpointName, list[bytes]]:
    """Return name and lines of the checkpoint of both entries."""
    keys = keys_digest([IDENTITY.recipient], SIGNING_KEY.public_text)
    name = CheckpointName("site-a", Range(0, 1, 2), keys)
    entries = [
        open_lines(seal_entry(each, [IDENTITY.recipient]), [IDENTITY]) for each in example_entries()
    ]
    pieces = checkpoint_pieces(
        "site-a", name.range, FIRST_PREVIOUS, "2024-11-23T22:20:00.000000Z", iter(entries),
        SIGNING_KEY,
    )  # fmt: skip
    return name, gzip.decompress(b"".join(pieces)).splitlines(keepends=True)


def test_the_page_shows_the_checkpoint_byte_for_byte(tmp_path: Path) -> None:
    """Its name, the lines that are its own, and as the rest the entries' lines."""
    page = PAGE.read_text()
    name, lines = example_checkpoint()
    assert f"`{name.key}`" in page
    first, second = (
        plain_of(each, tmp_path).encode().splitlines(keepends=True) for each in example_entries()
    )
    assert lines[1:5] == [first[0], first[2], second[0], second[2]]
    for own in (lines[:1], lines[5:]):
        assert f"```\n{b''.join(own).decode()}```" in page


def test_a_checkpoint_is_checked_as_the_page_says(tmp_path: Path) -> None:
    """By age, gzip, sha256sum, the script above and openssl; a change is seen by each of both."""
    page = PAGE.read_text()
    name, lines = example_checkpoint()
    (tmp_path / "recovery.key").write_text(IDENTITY.secret_text() + "\n")
    (tmp_path / "signature.py").write_text(script_of(page, "python", "public.pem"))
    check = (
        script_of(page, "console", "tail -n 2")
        .replace("$ ", "")
        .replace("CHECKPOINT", os.path.basename(name.key))
    )
    verify = script_of(page, "console", "openssl").strip().removeprefix("$ ")

    def run(changed: list[bytes]) -> str:
        target = tmp_path / os.path.basename(name.key)
        plain = gzip.compress(b"".join(changed[:-2])) + gzip.compress(b"".join(changed[-2:]))
        target.write_bytes(encrypt_bytes(plain, [IDENTITY.recipient]))
        done = subprocess.run(
            f"{check}\n{verify}", shell=True, cwd=tmp_path, capture_output=True, text=True,
            check=False, timeout=30,
        )  # fmt: skip
        return done.stdout + done.stderr

    digest = hashlib.sha256(b"".join(lines[:-2])).hexdigest()
    good = run(lines)
    assert good.count(digest) == 2
    assert "Signature Verified Successfully" in good
    assert run([each.replace(b"4711", b"4712") for each in lines]).count(digest) == 1
    other = [*lines[:-2], lines[-2].replace(digest.encode(), b"0" * 64), lines[-1]]
    assert "Signature Verified Successfully" not in run(other)


def script_of(page: str, language: str, word: str) -> str:
    """Return the one block of the page in a language that holds a word."""
    blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found


def test_the_check_by_hand_says_yes_and_no(tmp_path: Path) -> None:
    """The page's own script follows a chain, and names a header that was changed."""
    page = PAGE.read_text()
    script = tmp_path / "check.sh"
    script.write_text(script_of(page, "sh", "sha256sum"))
    for entry in example_entries():
        plain = plain_of(entry, tmp_path)
        (tmp_path / f"{entry.header.sequence:012d}.json").write_text(plain)

    def run() -> str:
        done = subprocess.run(
            ["sh", str(script)], cwd=tmp_path, capture_output=True, text=True, check=False,
            timeout=30,
        )  # fmt: skip
        return done.stdout + done.stderr

    assert "broken" not in run()
    second = tmp_path / f"{2:012d}.json"
    second.write_text(second.read_text().replace("4711", "4712"))
    assert f"{second.name}: record broken" in run()
    second.write_text(second.read_text().replace("4712", "4711"))
    first = tmp_path / f"{1:012d}.json"
    first.write_text(first.read_text().replace("22:12:58.25", "22:12:59.25"))
    assert f"{second.name}: chain broken" in run()


def test_the_signature_is_checked_as_the_page_says(tmp_path: Path) -> None:
    """With Python's library alone for the key's text, and openssl for the signature."""
    page = PAGE.read_text()
    script = tmp_path / "signature.py"
    script.write_text(script_of(page, "python", "public.pem"))
    entry = example_entries()[1]
    name = f"{2:012d}.json"
    (tmp_path / name).write_text(plain_of(entry, tmp_path))
    subprocess.run(
        ["python3", str(script), name], cwd=tmp_path, check=True, timeout=30,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    command = script_of(page, "console", "openssl").strip().removeprefix("$ ")
    good = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )
    assert "Signature Verified Successfully" in good.stdout, good.stderr
    header = tmp_path / "header"
    assert hashlib.sha256(header.read_bytes()).hexdigest() == entry.header_sha256
    header.write_bytes(header.read_bytes().replace(b"site-a", b"site-b"))
    bad = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )
    assert bad.returncode != 0
