"""Specific Character Set: the standard's examples, what Python's codecs lack, what senders do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dicom.character_set import decode_text, defined_terms, encode_text

KANJI = "Yamada^Tarou=山田^太郎=やまだ^たろう"
STANDARD = {  # PS3.5 annexes H.3.1, H.3.2, I.2, J.1, J.3, K.2
    "H.3-1": (
        "\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        KANJI,
    ),
    "H.3-2": (
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        (
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J="
            b"\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J"
        ),
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    "I.2-1": (
        "\\ISO 2022 IR 149",
        (
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7="
            b"\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf"
        ),
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    "J.1-1": (
        "ISO_IR 192",
        b"Wang^XiaoDong=\xe7\x8e\x8b^\xe5\xb0\x8f\xe6\x9d\xb1=",
        "Wang^XiaoDong=王^小東=",
    ),
    "J.3-1": (
        "GB18030",
        b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=",
        "Wang^XiaoDong=王^小东=",
    ),
    "K.2-1": (
        "\\ISO 2022 IR 58",
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        "Zhang^XiaoDong=张^小东=",
    ),
}
SINGLE_BYTE = {
    "100": "Äneas^Rüdiger", "101": "Dvořák^Łucja", "109": "Ĉiĝo^Ħal", "110": "Ķēniņš^Ģirts",
    "126": "Διονυσιος", "127": "قباني^لنزار", "138": "שרון^דבורה", "144": "Люкceмбypг",
    "148": "Çavuşoğlu^İnci", "166": "สมชาย^ใจดี", "203": "Žižek^Œuvre€", "13": "ﾔﾏﾀﾞ^ﾀﾛｳ",
}  # fmt: skip


@pytest.mark.parametrize("name", STANDARD)
def test_the_standards_examples_decode_and_encode_to_the_byte(name: str):
    """PS3.5 annexes H, I, J, K hold in both directions."""
    character_set, raw, text = STANDARD[name]
    assert decode_text(raw, "PN", character_set) == text
    assert encode_text(text, "PN", character_set) == raw


@pytest.mark.parametrize("number", SINGLE_BYTE)
def test_single_byte_sets_hold_with_and_without_code_extensions(number: str):
    """Every single-byte set of PS3.3 C.12.1.1.2, IR 203 included, reads back what it wrote."""
    text = SINGLE_BYTE[number]
    for character_set in (
        f"ISO_IR {number}",
        f"ISO 2022 IR {number}",
        f"\\ISO 2022 IR {number}",
        f"ISO 2022 IR 6\\ISO 2022 IR {number}",
        f"ISO 2022 IR 100\\ISO 2022 IR {number}\\ISO 2022 IR 87",
    ):
        raw = encode_text(text, "PN", character_set)
        assert decode_text(raw, "PN", character_set) == text, character_set


def test_bytes_of_kanji_that_look_like_delimiters_do_not_split():
    """JIS bytes 0x5C, 0x5E and 0x3D are halves of kanji, not backslash, caret and equals sign."""
    text = "ぜ^ソ=構\\表"
    raw = encode_text(text, "PN", "\\ISO 2022 IR 87")
    assert raw.count(b"\\") + raw.count(b"^") + raw.count(b"=") > 3
    assert decode_text(raw, "PN", "\\ISO 2022 IR 87") == text


def test_supplementary_kanji_need_ir_159():
    """JIS X 0212 is written and read by its own escape sequence."""
    raw = encode_text("丂", "PN", "\\ISO 2022 IR 87\\ISO 2022 IR 159")
    assert raw == b"\x1b$(D0!\x1b(B"
    assert decode_text(raw, "PN", "\\ISO 2022 IR 87\\ISO 2022 IR 159") == "丂"


def test_escape_sequences_hold_though_undeclared():
    """An escape sequence says what follows whatever (0008,0005) says."""
    raw = STANDARD["H.3-1"][1]
    for declared in ("", "ISO_IR 100", "ISO_IR 6", "ISO_IR 192", "nonsense"):
        assert decode_text(raw, "PN", declared) == KANJI


def test_a_delimiter_resets_what_was_designated():
    """Behind ^ the first set is in force again (PS3.5 6.1.2.5.3)."""
    raw = b"\x1b-F\xc4^\xc4"
    assert decode_text(raw, "PN", "ISO 2022 IR 100\\ISO 2022 IR 126") == "Δ^Ä"
    assert decode_text(raw, "LO", "ISO 2022 IR 100\\ISO 2022 IR 126") == "Δ^Δ"


@pytest.mark.parametrize(
    ("text", "codec", "declared"),
    [
        ("ヤマダ^太郎 表示", "shift_jis", "ISO_IR 13"),
        ("ﾔﾏﾀﾞ=山田^ソニー①", "cp932", "ISO 2022 IR 13\\ISO 2022 IR 87"),
        ("山田^太郎", "shift_jis", "\\ISO 2022 IR 87"),
        ("山田^太郎", "utf-8", "\\ISO 2022 IR 87"),
        ("山田^太郎", "utf-8", ""),
        ("Müller^Jörg", "latin-1", ""),
        ("张^小东", "gb18030", "ISO_IR 192"),
        ("홍^길동", "euc_kr", "ISO 2022 IR 149"),
        ("홍^길동", "utf-8", "\\ISO 2022 IR 149"),
        ("Дмитрий", "iso8859_5", "ISO-IR 144"),
        ("Дмитрий", "iso8859_5", "ISO_IR_144"),
        ("é", "utf-8", "UTF-8"),
        ("東", "gbk", "ISO 2022 GBK"),
    ],
)
def test_wrongly_declared_text_is_read_as_what_it_is(text: str, codec: str, declared: str):
    """What senders really do is read where the bytes leave no doubt."""
    assert decode_text(text.encode(codec), "PN", declared) == text


@given(st.binary(max_size=80), st.sampled_from(["PN", "LO", "UT"]), st.text(max_size=30))
def test_decoding_never_raises(raw: bytes, vr: str, declared: str):
    """Any bytes under any declaration give text."""
    assert isinstance(decode_text(raw, vr, declared), str)


@given(
    st.text(alphabet="Az^=\\ 山田太郎ソ表構ﾔﾏ丂äÖДжΔ홍길동张东", max_size=20),
    st.sampled_from(
        [
            "ISO_IR 192",
            "GB18030",
            (
                "ISO 2022 IR 6\\ISO 2022 IR 87\\ISO 2022 IR 159\\ISO 2022 IR 144\\ISO 2022 IR 149"
                "\\ISO 2022 IR 58\\ISO 2022 IR 100\\ISO 2022 IR 126\\ISO 2022 IR 13"
            ),
            "ISO 2022 IR 13\\ISO 2022 IR 87\\ISO 2022 IR 100",
        ]
    ),
)
def test_what_encodes_decodes_to_itself(text: str, character_set: str):
    """Encoding refuses, or its bytes read back as the same text."""
    try:
        raw = encode_text(text, "PN", character_set)
    except UnicodeEncodeError:
        return
    assert decode_text(raw, "PN", character_set) == text


def test_a_character_outside_the_sets_is_refused():
    """The caller then answers in ISO_IR 192."""
    for declared in ("", "ISO_IR 100", "ISO 2022 IR 6\\ISO 2022 IR 87"):
        with pytest.raises(UnicodeEncodeError):
            encode_text("홍", "PN", declared)


@pytest.mark.parametrize(
    ("declared", "answered"),
    [
        ("", ""),
        ("ISO_IR 100", "ISO_IR 100"),
        ("\\ISO 2022 IR 87", "\\ISO 2022 IR 87"),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", "ISO 2022 IR 13\\ISO 2022 IR 87"),
        ("ISO-IR 100", "ISO_IR 100"),
        ("ISO_IR_192", "ISO_IR 192"),
        ("UTF-8", "ISO_IR 192"),
        ("KOI-8", ""),
        ("KOI-8\\ISO 2022 IR 87", "\\ISO 2022 IR 87"),
        ("ISO_IR 87", "\\ISO 2022 IR 87"),
        ("ISO-IR 13\\ISO-IR 87", "ISO 2022 IR 13\\ISO 2022 IR 87"),
    ],
)
def test_declared_terms_are_the_standards(declared, answered):
    """What an answer declares is in PS3.3 C.12.1.1.2, whatever a modality wrote."""
    assert defined_terms(declared) == answered
