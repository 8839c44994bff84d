"""The worked example of the pack format's page is what the code writes today."""

import hashlib
from pathlib import Path

from appliance.foundation.files import FileSystem
from appliance.packs.frames import encode_frame, stream_head
from appliance.packs.member import Provenance, member_name
from appliance.packs.reader import PackReader
from appliance.packs.writer import PackWriter
from tests.support import pack_samples as samples

PAGE = Path(__file__).parents[2] / "docs" / "internals" / "pack-format.md"


def hexdump(content: bytes) -> str:
    """Return what `hexdump -C` prints: 16 bytes a line, repeated lines as one `*`."""
    lines: list[str] = []
    previous = None
    for at in range(0, len(content), 16):
        row = content[at : at + 16]
        if row == previous:
            if lines[-1] != "*":
                lines.append("*")
            continue
        previous = row
        pairs = [f"{byte:02x}" for byte in row]
        left, right = " ".join(pairs[:8]), " ".join(pairs[8:])
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}  {left:<23}  {right:<23}  |{text}|")
    lines.append(f"{len(content):08x}")
    return "\n".join(lines)


def example_meta() -> bytes:
    elements = (
        samples.element(0x00020001, "OB", b"\0\1"),
        samples.element(0x00020002, "UI", samples.CT_STORAGE.encode()),
        samples.element(0x00020003, "UI", b"1.2.3.4.5"),
        samples.element(0x00020010, "UI", samples.EXPLICIT.encode()),
    )
    group = b"".join(elements)
    return (
        bytes(128)
        + b"DICM"
        + samples.element(0x00020000, "UL", len(group).to_bytes(4, "little"))
        + group
    )


def example_dataset() -> bytes:
    return samples.element(0x00100010, "PN", b"Yamada^Tarou") + samples.element(
        0x7FE00010, "OW", b"\x01\x02\x03\x04"
    )


def example_pack(folder: Path) -> bytes:
    writer = PackWriter(FileSystem(), samples.pack_path(folder), samples.STUDY)
    content = example_dataset()
    writer.append(
        member_name("1.2.3.4", "1.2.3.4.5"),
        Provenance(1_732_400_000_123_456, "CT1", "AZEKURA", "192.0.2.7"),
        samples.EXPLICIT,
        example_meta(),
        content,
        hashlib.sha256(content).digest(),
    )
    writer.close()
    return Path(writer.path).read_bytes()


def example_frames() -> bytes:
    content = example_dataset()
    bulk = [(0x7FE00010, "OW", len(content) - 4, 4)]
    frame = encode_frame(
        member_name("1.2.3.4", "1.2.3.4.5"), samples.EXPLICIT, bulk, content[:-16], note=""
    )
    return stream_head(samples.PACK_ID, 1) + frame


def test_the_page_shows_a_pack_byte_for_byte(tmp_path):
    """Whoever has to read a pack without this software can trust the page."""
    content = example_pack(tmp_path)
    with PackReader(samples.pack_path(tmp_path)) as reader:
        (member,) = reader.members()
        assert reader.verify(member)
    assert f"```\n{hexdump(content)}\n```" in PAGE.read_text()


def test_the_page_shows_the_frames_byte_for_byte():
    """And so the headers of an evicted study."""
    assert f"```\n{hexdump(example_frames())}\n```" in PAGE.read_text()
