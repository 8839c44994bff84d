"""Specific Character Set (0008,0005): bytes to text and back (PS3.3 C.12.1.1.2, PS3.5 6.1.2).

Owns the table of defined terms and the ISO 2022 machine for code extensions. Must not know about
datasets. Decoding never raises: escape sequences are obeyed whether declared or not, and what the
declared set cannot read is tried as what senders really send. Decoding comes before any split at
backslash, ^ or =, because two-byte characters contain those bytes.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

_ESC = 0x1B


class _CodeElement(NamedTuple):
    """One graphic set that an escape sequence designates into G0 or G1."""

    name: str
    half: int  # 0: G0, 1: G1
    width: int
    escape: bytes
    decode: Callable[[bytes], str]
    encode: Callable[[str], bytes | None]


def _plain(codec: str) -> tuple[Callable[[bytes], str], Callable[[str], bytes | None]]:
    def decode(raw: bytes) -> str:
        return raw.decode(codec, "replace")

    @lru_cache(maxsize=256)
    def encode(character: str) -> bytes | None:
        try:
            raw = character.encode(codec)
        except UnicodeEncodeError:
            return None
        return raw if len(raw) == 1 and raw[0] >= 0xA0 else None

    return decode, encode


def _ascii_encode(character: str) -> bytes | None:
    return character.encode("ascii") if character < "\x80" else None


def _ascii_decode(raw: bytes) -> str:
    return raw.decode("latin-1")


def _kana_decode(raw: bytes) -> str:
    for codec in ("shift_jis", "cp932"):
        try:
            return raw.decode(codec)
        except UnicodeDecodeError:
            continue
    return raw.decode("shift_jis", "replace")


def _kana_in_g0(raw: bytes) -> str:
    return _kana_decode(bytes(byte | 0x80 for byte in raw))


def _kana_encode(character: str) -> bytes | None:
    return bytes((ord(character) - 0xFEC0,)) if "\uff61" <= character <= "\uff9f" else None


def _pairs(
    codec: str, prefix: bytes, high: bool
) -> tuple[Callable[[bytes], str], Callable[[str], bytes | None]]:
    """Return the coder of a 94 by 94 set that an EUC codec of Python holds."""

    def decode(raw: bytes) -> str:
        text = []
        for at in range(0, len(raw) - 1, 2):
            pair = bytes((raw[at] | 0x80, raw[at + 1] | 0x80))
            text.append((prefix + pair).decode(codec, "replace"))
        if len(raw) % 2:
            text.append(chr(raw[-1]) if raw[-1] < 0x80 else "\ufffd")
        return "".join(text)

    @lru_cache(maxsize=8192)
    def encode(character: str) -> bytes | None:
        try:
            raw = character.encode(codec)
        except UnicodeEncodeError:
            return None
        pair = raw[len(prefix) :]
        if len(pair) != 2 or not raw.startswith(prefix) or pair[0] < 0xA1 or pair[1] < 0xA1:
            return None
        return pair if high else bytes((pair[0] & 0x7F, pair[1] & 0x7F))

    return decode, encode


_ASCII = _CodeElement("IR 6", 0, 1, b"\x1b(B", _ascii_decode, _ascii_encode)
_ROMAJI = _CodeElement("IR 14", 0, 1, b"\x1b(J", _ascii_decode, _ascii_encode)
_KANA = _CodeElement("IR 13", 1, 1, b"\x1b)I", _kana_decode, _kana_encode)
_EXTENSIONS = {
    "13": _KANA,
    "87": _CodeElement("IR 87", 0, 2, b"\x1b$B", *_pairs("euc_jp", b"", False)),
    "159": _CodeElement("IR 159", 0, 2, b"\x1b$(D", *_pairs("euc_jp", b"\x8f", False)),
    "58": _CodeElement("IR 58", 1, 2, b"\x1b$)A", *_pairs("gb2312", b"", True)),
    "149": _CodeElement("IR 149", 1, 2, b"\x1b$)C", *_pairs("euc_kr", b"", True)),
    "100": _CodeElement("IR 100", 1, 1, b"\x1b-A", *_plain("iso8859_1")),
    "101": _CodeElement("IR 101", 1, 1, b"\x1b-B", *_plain("iso8859_2")),
    "109": _CodeElement("IR 109", 1, 1, b"\x1b-C", *_plain("iso8859_3")),
    "110": _CodeElement("IR 110", 1, 1, b"\x1b-D", *_plain("iso8859_4")),
    "126": _CodeElement("IR 126", 1, 1, b"\x1b-F", *_plain("iso8859_7")),
    "127": _CodeElement("IR 127", 1, 1, b"\x1b-G", *_plain("iso8859_6")),
    "138": _CodeElement("IR 138", 1, 1, b"\x1b-H", *_plain("iso8859_8")),
    "144": _CodeElement("IR 144", 1, 1, b"\x1b-L", *_plain("iso8859_5")),
    "148": _CodeElement("IR 148", 1, 1, b"\x1b-M", *_plain("iso8859_9")),
    "166": _CodeElement("IR 166", 1, 1, b"\x1b-T", *_plain("iso8859_11")),
    "203": _CodeElement("IR 203", 1, 1, b"\x1b-b", *_plain("iso8859_15")),
}
_BY_ESCAPE = {element.escape[1:]: element for element in (_ASCII, _ROMAJI, *_EXTENSIONS.values())}
_BY_ESCAPE[b"(I"] = _CodeElement("IR 13", 0, 1, b"\x1b(I", _kana_in_g0, _kana_encode)  # H.1-1
_BY_ESCAPE[b"$@"] = _EXTENSIONS["87"]  # JIS C 6226-1978, sent by old Japanese modalities
_BY_ESCAPE[b"$(B"] = _EXTENSIONS["87"]
_STAND_ALONE = {"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gb18030"}
_ALIASES = {
    "UTF-8": "ISO_IR 192", "UTF8": "ISO_IR 192", "ISO 2022 GBK": "GBK", "ISO 2022 58": "58",
    "GB2312": "58", "SHIFT_JIS": "13", "ISO 2022 GB18030": "GB18030",
}  # fmt: skip
_DEFINED = frozenset({
    *_STAND_ALONE, "ISO_IR 6", "ISO 2022 IR 6",
    *(f"ISO 2022 IR {number}" for number in _EXTENSIONS),
    *(f"ISO_IR {number}" for number, element in _EXTENSIONS.items() if element.width == 1),
})  # fmt: skip
_TEXT_DELIMITERS = frozenset(b"\t\n\f\r")
_VALUE_DELIMITERS = _TEXT_DELIMITERS | frozenset(b"\\")
_NAME_DELIMITERS = _VALUE_DELIMITERS | frozenset(b"^=")
_ONE_VALUE_VRS = frozenset({"ST", "LT", "UT"})


class Repertoire(NamedTuple):
    """What a value of (0008,0005) means: one stand-alone codec, or code elements to switch."""

    codec: str  # "" where code elements apply
    g0: _CodeElement
    g1: _CodeElement | None  # lenient: the first declared one where value 1 has none
    initial_g1: _CodeElement | None  # strict: that of value 1
    declared: tuple[_CodeElement, ...]
    silent: bool  # nothing but the default repertoire is declared


def _term(value: str) -> str:
    value = value.strip(" \0").upper()
    value = _ALIASES.get(value, value)
    if value in _STAND_ALONE or value in _EXTENSIONS:
        return value
    words = value.replace("-", " ").replace("_", " ").split()
    number = words[-1] if words else ""
    if number == "192":
        return "ISO_IR 192"
    return number if number in _EXTENSIONS else ""


@lru_cache(maxsize=256)
def defined_terms(character_set: str) -> str:
    """Return (0008,0005) as it may be declared: in the standard's terms (PS3.3 C.12.1.1.2).

    Misspelt terms are spelt right, unknown ones left out; "" when nothing is left.
    """
    values = [value.strip(" \0") for value in character_set.split("\\")]
    if all(value in _DEFINED or (not value and number == 0) for number, value in enumerate(values)):
        return character_set
    terms = [_term(value) for value in values]
    if terms[0] in _STAND_ALONE:
        return terms[0]
    known = [term if term in _EXTENSIONS else "" for term in terms]
    single_byte_first = known[0] and _EXTENSIONS[known[0]].width == 1
    further = [f"ISO 2022 IR {term}" for term in known[1 if single_byte_first else 0 :] if term]
    if not further:
        return f"ISO_IR {known[0]}" if single_byte_first else ""
    return "\\".join([f"ISO 2022 IR {known[0]}" if single_byte_first else "", *further])


@lru_cache(maxsize=256)
def repertoire(character_set: str) -> Repertoire:
    """Return the repertoire of (0008,0005), its values joined by a backslash.

    Misspelt terms ("ISO-IR 100", "ISO_IR_192") are understood; unknown ones count as ISO_IR 6. A
    stand-alone set counts only as the first value (PS3.3 C.12.1.1.2).
    """
    terms = [_term(value) for value in character_set.split("\\")]
    if terms[0] in _STAND_ALONE:
        return Repertoire(_STAND_ALONE[terms[0]], _ASCII, None, None, (), False)
    declared = tuple(_EXTENSIONS[term] for term in terms if term in _EXTENSIONS)
    g0 = _ROMAJI if terms[0] == "13" else _ASCII
    first = _EXTENSIONS.get(terms[0])
    initial = first if first is not None and first.half == 1 and first.width == 1 else None
    g1 = initial or next((element for element in declared if element.half == 1), None)
    return Repertoire("", g0, g1, initial, declared, not declared)


def decode_text(raw: bytes, vr: str, character_set: str) -> str:
    """Return the text of a value, never raising; several values stay joined by a backslash."""
    extended = b"\x1b" in raw
    if raw.isascii() and not extended:
        return raw.decode("ascii")
    rules = repertoire(character_set)
    if extended and rules.codec != "gb18030":
        return _decode_extended(raw, vr, rules)
    if rules.codec or rules.g1 is None:
        return _decode_first(raw, _candidates(rules))
    if rules.g1 is _KANA:
        return _kana_decode(raw)
    text = _decode_extended(raw, vr, rules)
    if "\ufffd" in text:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return text


def _candidates(rules: Repertoire) -> tuple[str, ...]:
    """Return the codecs to try on bytes without escape sequences, the declared one first."""
    if rules.codec == "utf-8":
        return ("utf-8", "gb18030", "shift_jis")
    if rules.codec:
        return (rules.codec, "utf-8")
    # No set is declared for G1, so high bytes are wrong anyway; where kanji are declared in G0,
    # senders that don't know better send Shift-JIS or EUC.
    japanese = () if rules.silent else ("shift_jis", "cp932", "euc_jp")
    return ("utf-8", *japanese, "latin-1")


def _decode_first(raw: bytes, codecs: tuple[str, ...]) -> str:
    for codec in codecs:
        try:
            return raw.decode(codec)
        except UnicodeDecodeError:
            continue
    return raw.decode(codecs[0], "replace")


def _delimiters(vr: str) -> frozenset[int]:
    if vr == "PN":
        return _NAME_DELIMITERS
    return _TEXT_DELIMITERS if vr in _ONE_VALUE_VRS else _VALUE_DELIMITERS


def _escape_at(raw: bytes, position: int) -> tuple[_CodeElement | None, int]:
    """Return the set designated at an ESC and the length of the sequence."""
    for length in (3, 2):
        element = _BY_ESCAPE.get(raw[position + 1 : position + 1 + length])
        if element is not None:
            return element, length + 1
    return None, 1


def _decode_extended(raw: bytes, vr: str, rules: Repertoire) -> str:
    delimiters = _delimiters(vr)
    g0, g1 = rules.g0, rules.g1
    text: list[str] = []
    at, end = 0, len(raw)
    while at < end:
        byte = raw[at]
        if byte == _ESC:
            element, length = _escape_at(raw, at)
            if element is not None and element.half == 0:
                g0 = element
            elif element is not None:
                g1 = element
            at += length
        elif byte < 0x21 or (g0.width == 1 and byte in delimiters):
            if byte in delimiters:
                g0, g1 = rules.g0, rules.g1
            text.append(chr(byte))
            at += 1
        elif byte >= 0x80:
            start = at
            while at < end and raw[at] >= 0x80:
                at += 1
            run = raw[start:at]
            text.append(g1.decode(run) if g1 else _decode_first(run, ("utf-8", "latin-1")))
        else:
            start = at
            stops = delimiters if g0.width == 1 else frozenset()
            while at < end and 0x21 <= raw[at] < 0x80 and raw[at] not in stops:
                at += 1
            text.append(g0.decode(raw[start:at]))
    return "".join(text)


def encode_text(text: str, vr: str, character_set: str) -> bytes:
    """Return the bytes of a text, with escape sequences where code extensions need them.

    Raises UnicodeEncodeError where the declared sets do not have a character.
    """
    if text.isascii():
        return text.encode("ascii")
    rules = repertoire(character_set)
    if rules.codec:
        return text.encode(rules.codec)
    return _encode_extended(text, _delimiters(vr), rules)


def _encode_extended(text: str, delimiters: frozenset[int], rules: Repertoire) -> bytes:
    out = bytearray()
    g0, g1 = rules.g0, rules.initial_g1
    for index, character in enumerate(text):
        code = ord(character)
        if code < 0x20 or code in delimiters:
            if g0 is not rules.g0:
                out += rules.g0.escape
            out.append(code)
            g0, g1 = rules.g0, rules.initial_g1
            continue
        if code < 0x80 and g0 is rules.g0:
            out.append(code)
            continue
        for element in (g0, g1, rules.g0, *rules.declared):
            raw = element.encode(character) if element is not None else None
            if raw is not None and element is not None:
                break
        else:
            raise UnicodeEncodeError("dicom", text, index, index + 1, "in none of the sets")
        if element is not g0 and element is not g1:
            out += element.escape
            if element.half == 0:
                g0 = element
            else:
                g1 = element
        out += raw
    if g0 is not rules.g0:
        out += rules.g0.escape
    return bytes(out)
