"""The worked example of the index format's page is what the code writes today."""

from pathlib import Path

from appliance.foundation.files import FileSystem
from appliance.index.dump import dump
from appliance.index.facts import InstanceFacts, PackFacts
from appliance.index.index import Index
from appliance.index.schema import FORMAT_VERSION, Table, seal_value

PAGE = Path(__file__).parents[2] / "docs" / "internals" / "index-format.md"
WIDTH = 100


def example() -> PackFacts:
    """Return the pack of the page: one instance, not yet in the cloud."""
    instance = InstanceFacts(
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.3.4",
        sop_instance_uid="1.2.3.4.5",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        offset=1_774,
        length=36,
        sha256=bytes(range(32)),
        received_at_us=1_732_400_000_123_456,
        calling_ae="CT1",
        called_ae="AZEKURA",
        peer_address="192.0.2.7",
        tls_subject="",
        character_set="ISO_IR 192",
        attributes={
            0x00080020: "20241124",
            0x00080050: "A1",
            0x00080060: "CT",
            0x00100010: "Yamada^Tarou",
            0x00100020: "P1",
            0x00200013: "1",
        },
    )
    return PackFacts("01jdexqa5v0123456789abcdef", "site-a", [instance], local=True, size=2_048)


def wrapped(text: bytes) -> str:
    """Return lines of the page: no longer than WIDTH, a continued one indented."""
    lines: list[str] = []
    for line in text.decode().splitlines():
        rest = line
        while rest:
            room = WIDTH if rest is line else WIDTH - 4
            lines.append(("" if rest is line else "    ") + rest[:room])
            rest = rest[room:]
    return "\n".join(lines)


def example_dump(folder: Path) -> bytes:
    with Index(FileSystem(), str(folder / "index"), map_size=1 << 26) as index:
        with index.write() as txn:
            txn.apply_pack(example(), indexed_length=2_048)
        with index.read() as view:
            return dump(view)


def test_the_page_shows_an_index_byte_for_byte(tmp_path: Path) -> None:
    """Whoever has to look into an index without this software can trust the page."""
    assert f"```\n{wrapped(example_dump(tmp_path))}\n```" in PAGE.read_text()


def test_the_page_shows_a_value_with_its_checksum() -> None:
    """The checksum is over key and record."""
    assert f"`{seal_value(b'format', bytes([FORMAT_VERSION])).hex()}`" in PAGE.read_text()


def test_the_page_names_every_table() -> None:
    """No table is left out."""
    page = PAGE.read_text()
    assert [table for table in Table if f"| `{table.name.lower()}` |" not in page] == []
