"""A checkpoint's bytes: what goes in comes out, and whatever is changed is noticed."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from appliance.archive.checkpoint import CheckpointReader, checkpoint_pieces, member, sealed_end
from appliance.archive.checkpoint_name import CheckpointName, Range, keys_digest
from appliance.archive.ledger_entry import FIRST_PREVIOUS, build_entry
from appliance.archive.records import Signature
from appliance.foundation.errors import Damaged, DecryptionFailed, SealedToOthers, UnsupportedFormat
from appliance.seal.age import decrypt_bytes, encrypt_bytes, encrypt_stream
from appliance.seal.identity import Identity
from appliance.seal.stream import PieceStream
from tests.support.checkpoints import (
    AT,
    Maker,
    chain,
    lines_of,
    new_signing_key,
    reader,
    some_record,
)

NODE = "site-a"
IDENTITY = Identity(bytes(range(1, 33)))
OTHER = Identity(bytes(range(2, 34)))
KEY = new_signing_key()
MAKER = Maker(NODE, [IDENTITY.recipient], KEY)
ENTRIES = chain(NODE, 9, KEY)


def made(tmp_path: Path, first: int = 1, last: int = 8, **options) -> tuple[CheckpointName, bytes]:
    """Return name and bytes of a checkpoint of some of the entries."""
    path = tmp_path / "checkpoint"
    name = MAKER.write(path, ENTRIES, first, last, **options)
    return name, path.read_bytes()


class TestForm:
    """What is written is what is read, here and by the commands that everybody has."""

    def test_every_entry_comes_out_as_it_was(self, tmp_path: Path) -> None:
        """Headers and records byte for byte, and the hashes around the range."""
        name, sealed = made(tmp_path, 3, 8)
        reading = reader(sealed, [IDENTITY], name, KEY)
        found = list(reading.entries())
        assert [(each.header, each.header_sha256) for each in found] == [
            (each.header, each.header_sha256) for each in ENTRIES[2:8]
        ]
        assert [each.record_lines for each in found] == [
            lines_of(each).record_lines for each in ENTRIES[2:8]
        ]
        assert [each.records() for each in found] == [each.records for each in ENTRIES[2:8]]
        assert reading.proof == (ENTRIES[1].header_sha256, ENTRIES[7].header_sha256)

    def test_age_and_gzip_open_it(self, tmp_path: Path) -> None:
        """The stock commands give JSON lines, with the records as the ledger has them."""
        made(tmp_path)
        key = tmp_path / "recovery.key"
        key.write_text(IDENTITY.secret_text() + "\n")
        done = subprocess.run(
            f"age -d -i {key} {tmp_path / 'checkpoint'} | gzip -dc", shell=True,
            capture_output=True, check=True, timeout=30,
        )  # fmt: skip
        lines = done.stdout.splitlines()
        assert json.loads(lines[0])["previous"] == FIRST_PREVIOUS
        assert lines[1] == ENTRIES[0].header_line
        assert lines[2:4] == lines_of(ENTRIES[0]).record_lines
        assert json.loads(lines[-2])["head"] == ENTRIES[7].header_sha256
        assert json.loads(lines[-1])["key"] == KEY.public_text

    def test_a_name_is_a_key_and_back(self) -> None:
        """Whoever lists a bucket or a folder takes no other object for a checkpoint."""
        name = MAKER.name(2, 1025, 2048)
        assert name.key == f"checkpoints/2/site-a/000000001025-000000002048-{name.keys}.json.gz.age"
        assert CheckpointName.parse(name.key) == name
        assert CheckpointName.parse_file_name(NODE, name.file_name) == name
        for strange in (
            name.key.replace("-000000002048", "-000000001024"), name.key + "x",
            name.key.replace("checkpoints/2", "checkpoints/x"), name.key.replace("age", "zip"),
            "ledger/site-a/000000000001.json.gz.age",
        ):  # fmt: skip
            assert CheckpointName.parse(strange) is None

    def test_other_keys_give_another_name(self) -> None:
        """Neither the order nor a doubled recipient matters; another signer does."""
        one, two = IDENTITY.recipient, OTHER.recipient
        assert keys_digest([one, two], "s") == keys_digest([two, one, two], "s")
        digests = {keys_digest([one], "s"), keys_digest([one, two], "s"), keys_digest([one], "t")}
        assert len(digests) == 3

    @pytest.mark.parametrize("wrong", ["gap", "early", "more", "other"])
    def test_no_checkpoint_is_made_of_what_is_no_chain(self, wrong: str) -> None:
        entries = [lines_of(each) for each in ENTRIES[:4]]
        if wrong == "gap":
            del entries[1]
        elif wrong == "early":
            entries.pop()
        elif wrong == "more":
            entries.append(lines_of(ENTRIES[4]))
        else:
            entries[2] = lines_of(chain("site-b", 3, KEY)[2])
        with pytest.raises(Damaged):
            list(checkpoint_pieces(NODE, Range(1, 1, 4), FIRST_PREVIOUS, AT, iter(entries), KEY))


def _replaced(old: bytes, new: bytes):
    def change(lines: list[bytes]) -> list[bytes]:
        assert any(old in line for line in lines)
        return [line.replace(old, new) for line in lines]

    return change


FORGER = new_signing_key()
CHANGES = {
    "a record is altered": _replaced(b'"incarnation":"3-0"', b'"incarnation":"3-9"'),
    "a record is left out": lambda lines: lines[:3] + lines[4:],
    "an entry is left out": lambda lines: lines[:4] + lines[6:],
    "two records change places": lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
    "a record is added": lambda lines: [*lines[:-2], b'{"type":"opened"}', *lines[-2:]],
    "the opening is altered": _replaced(b"T03:00:00", b"T03:00:01"),
    "another range": lambda lines: [lines[0].replace(b'"last":8', b'"last":9'), *lines[1:]],
    "another node": lambda lines: [lines[0].replace(b"site-a", b"site-b"), *lines[1:]],
    "another beginning": lambda lines: [lines[0].replace(b"0" * 64, b"1" * 64), *lines[1:]],
    "cut in the middle": lambda lines: lines[:6],
    "without its signature": lambda lines: lines[:-1],
    "without its end": lambda lines: lines[:-2],
    "something behind it": lambda lines: [*lines, b"{}"],
    "nothing in it": lambda _lines: [],
    "a stranger's signature under the known key": lambda lines: [
        *lines[:-1],
        msgspec.json.encode(Signature(key=KEY.public_text, signature=FORGER.sign(lines[-2]))),
    ],
    "all of it another node's": lambda lines: [
        lines[0], *(line.replace(b'"node":"site-a"', b'"node":"site-b"') for line in lines[1:]),
    ],
}  # fmt: skip
IN_THE_BODY = [what for what in CHANGES if "signature" not in what and "its end" not in what]


class TestTampering:
    """Nothing that was changed is taken for what the node wrote."""

    @pytest.mark.parametrize("what", CHANGES)
    def test_a_change_is_damage(self, tmp_path: Path, what: str) -> None:
        """Sealed rightly, for anybody can seal to public recipients."""
        name, sealed = made(tmp_path, change=CHANGES[what])
        with pytest.raises(Damaged):
            reader(sealed, [IDENTITY], name, KEY).prove()

    @pytest.mark.parametrize("what", IN_THE_BODY)
    def test_a_signature_does_not_make_a_chain(self, tmp_path: Path, what: str) -> None:
        """Not even the node itself can put anything else than its chain into a checkpoint."""
        name, sealed = made(tmp_path, change=CHANGES[what], sign_again=KEY)
        if what != "the opening is altered":
            with pytest.raises(Damaged):
                reader(sealed, [IDENTITY], name, KEY).prove()

    def test_the_same_unchanged_is_proved(self, tmp_path: Path) -> None:
        """The control of the tests above, signed again by the same hand, or by a stranger's."""
        name, sealed = made(tmp_path, sign_again=KEY)
        reader(sealed, [IDENTITY], name, KEY).prove()
        name, sealed = made(tmp_path, sign_again=FORGER)
        with pytest.raises(Damaged, match="not known"):
            reader(sealed, [IDENTITY], name, KEY).prove()

    def test_nothing_is_unpacked_before_the_signature_is_proved(self, tmp_path: Path) -> None:
        """A body that becomes huge costs who forged it more than us."""
        name, sealed = made(tmp_path)
        closing = reader(sealed, [IDENTITY], name, KEY).closing()
        bomb = member([bytes(2**20)] * 300)
        end = sealed_end(
            msgspec.structs.replace(closing, bytes=300 * (2**20 + 1), packed_bytes=len(bomb)),
            FORGER,
        )  # fmt: skip
        forged = encrypt_bytes(bomb + end, MAKER.recipients)
        tracemalloc.start()
        with pytest.raises(Damaged, match="not known"):
            reader(forged, [IDENTITY], name, KEY).prove()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * 2**20

    def test_sizes_that_were_not_signed_are_damage(self, tmp_path: Path) -> None:
        """The genuine end behind another body of the same packed size, which unpacks to more."""
        name, sealed = made(tmp_path)
        plain = decrypt_bytes(sealed, [IDENTITY])
        closing = reader(sealed, [IDENTITY], name, KEY).closing()
        end = plain[closing.packed_bytes :]
        for body in (plain[: closing.packed_bytes - 1], plain[: closing.packed_bytes] + b"x"):
            with pytest.raises(Damaged, match="another size"):
                reader(encrypt_bytes(body + end, MAKER.recipients), [IDENTITY], name, KEY).prove()
        noise = msgspec.json.encode(closing.sha256) * 200
        longer = member([noise[: closing.bytes * 2]])
        assert len(longer) < closing.packed_bytes
        body = longer.ljust(closing.packed_bytes, b"\0")
        with pytest.raises(Damaged):
            reader(encrypt_bytes(body + end, MAKER.recipients), [IDENTITY], name, KEY).prove()

    def test_another_format_is_refused(self, tmp_path: Path) -> None:
        name, sealed = made(
            tmp_path, change=_replaced(b'"format":1', b'"format":2'), sign_again=KEY
        )  # fmt: skip
        with pytest.raises(UnsupportedFormat):
            reader(sealed, [IDENTITY], name, KEY).prove()

    def test_a_checkpoint_under_anothers_name_is_damage(self, tmp_path: Path) -> None:
        """A rightly signed one, put where another range or node is looked for."""
        _, sealed = made(tmp_path, 1, 8)
        for name in (
            MAKER.name(1, 2, 8), MAKER.name(1, 1, 7),
            Maker("site-b", MAKER.recipients, KEY).name(1, 1, 8),
        ):  # fmt: skip
            with pytest.raises(Damaged):
                reader(sealed, [IDENTITY], name, KEY).prove()

    def test_an_unknown_signer_is_damage(self, tmp_path: Path) -> None:
        name, sealed = made(tmp_path)
        with pytest.raises(Damaged, match="not known"):
            reader(sealed, [IDENTITY], name, FORGER).prove()

    def test_every_flipped_byte_and_every_cut_is_noticed(self, tmp_path: Path) -> None:
        name, sealed = made(tmp_path)
        for at in range(0, len(sealed), 7):
            flipped = bytearray(sealed)
            flipped[at] ^= 1
            for spoilt in (bytes(flipped), sealed[:at]):
                with pytest.raises((DecryptionFailed, Damaged)):
                    reader(spoilt, [IDENTITY], name, KEY).prove()

    def test_what_is_no_gzip_is_damage(self, tmp_path: Path) -> None:
        name, sealed = made(tmp_path)
        plain = decrypt_bytes(sealed, [IDENTITY])
        spoilt = bytearray(plain)
        spoilt[len(plain) // 2] ^= 0xFF
        for inner in (b"no gzip", plain[:-6], bytes(spoilt), plain + b"no gzip", plain + plain):
            outer = encrypt_bytes(inner, MAKER.recipients)
            with pytest.raises(Damaged):
                reader(outer, [IDENTITY], name, KEY).prove()

    def test_one_for_others_says_so(self, tmp_path: Path) -> None:
        """It is told from one that is damaged."""
        name, sealed = made(tmp_path)
        with pytest.raises(SealedToOthers):
            reader(sealed, [OTHER], name, KEY).prove()


def test_neither_making_nor_reading_holds_more_than_an_entry(tmp_path: Path) -> None:
    """About 15 MB of records that hardly compress, in a few MB of memory."""
    path = tmp_path / "checkpoint"
    count = 150

    def entries():
        previous = FIRST_PREVIOUS
        for sequence in range(1, count + 1):
            record = some_record(os.urandom(50_000).hex())
            entry = build_entry(NODE, sequence, "i", AT, previous, [record], KEY)
            previous = entry.header_sha256
            yield lines_of(entry)

    name = MAKER.name(1, 1, count)
    tracemalloc.start()
    try:
        pieces = checkpoint_pieces(NODE, name.range, FIRST_PREVIOUS, AT, entries(), KEY)
        made_of = encrypt_stream(PieceStream(pieces), str(path), MAKER.recipients)
        assert made_of.size > count * 50_000
        with path.open("rb") as file:
            reading = CheckpointReader(file, [IDENTITY], name, {KEY.public_text})
            assert sum(1 for _ in reading.entries()) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


_BIG = """
import os, resource, sys
from appliance.archive.checkpoint import CheckpointReader, checkpoint_pieces
from appliance.archive.ledger_entry import FIRST_PREVIOUS, build_entry
from appliance.seal.age import encrypt_stream
from appliance.seal.stream import PieceStream
from tests.support.checkpoints import AT, Maker, lines_of, some_record
from tests.unit.test_archive_checkpoint import IDENTITY, KEY, MAKER, NODE

def entries(count):
    previous = FIRST_PREVIOUS
    for sequence in range(1, count + 1):
        record = some_record(os.urandom(500_000).hex())
        entry = build_entry(NODE, sequence, "i", AT, previous, [record], KEY)
        previous = entry.header_sha256
        yield lines_of(entry)

def peak(count):
    name = MAKER.name(1, 1, count)
    pieces = checkpoint_pieces(NODE, name.range, FIRST_PREVIOUS, AT, entries(count), KEY)
    sealed = encrypt_stream(PieceStream(pieces), sys.argv[1], MAKER.recipients)
    with open(sys.argv[1], "rb") as file:
        CheckpointReader(file, [IDENTITY], name, {KEY.public_text}).prove()
    return sealed.size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

_, small = peak(10)
size, large = peak(600)
print(size, large - small)
"""


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_large_checkpoint_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    """600 MB of records, 300 MB compressed, written and read by one process: its resident set."""
    done = subprocess.run(
        [sys.executable, "-c", _BIG, str(tmp_path / "checkpoint")], capture_output=True, text=True,
        check=True, timeout=800, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    size, growth = map(int, done.stdout.split())
    assert size > 290_000_000
    assert growth < 16 * 2**20
