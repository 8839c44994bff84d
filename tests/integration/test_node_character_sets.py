"""Names in every script are stored, found and answered: the standard's examples on a real node.

The datasets are the examples of PS3.5 annexes H to K as pydicom ships them, and more of the same
kind for the sets that those leave out. Queries are files of raw bytes, made by dump2dcm.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.charset import python_encoding
from pydicom.data import get_charset_files

from tests.support.findscu import find_by_file
from tests.support.node import Node
from tests.support.pack_samples import CT_STORAGE, EXPLICIT, element
from tests.support.running_node import running_node
from tests.support.wire import (
    WireFile,
    dataset_of,
    read_wire_file,
    send_raw,
    with_own_meta,
)

PEERS = """
[[dicom.peers]]
ae_title = "OLDJAPAN"
addresses = ["127.0.0.0/8"]
allow = ["store", "find"]
character_set = "\\\\ISO 2022 IR 87"
"""
STANDARD = {
    "chrH31": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "chrH32": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    "chrI2": "Hong^Gildong=洪^吉洞=홍^길동",
    "chrX1": "Wang^XiaoDong=王^小東",
    "chrX2": "Wang^XiaoDong=王^小东",
    "chrKoreanMulti": "김희중",
    "chrJapMulti": "やまだ^たろう",
    "chrFren": "Buc^Jérôme",
    "chrGerm": "Äneas^Rüdiger",
    "chrGreek": "Διονυσιος",
    "chrRuss": "Люкceмбypг",
    "chrArab": "قباني^لنزار",
    "chrHbrw": "שרון^דבורה",
}


def _each_part(text: str, encode: Callable[[str], bytes]) -> bytes:
    """Encode what stands between ^ and =, which bring back the first set (PS3.5 6.1.2.5.3)."""
    return b"=".join(
        b"^".join(encode(part) for part in group.split("^")) for group in text.split("=")
    )


def _japanese(text: str) -> bytes:
    return _each_part(text, lambda part: part.encode("iso2022_jp"))


def _jis_with_kana(text: str) -> bytes:
    """ISO 2022 IR 13 \\\\ ISO 2022 IR 87: half-width kana in the right half, kanji escaped."""

    def encode(part: str) -> bytes:
        if all(each.isascii() or "\uff61" <= each <= "\uff9f" for each in part):
            return part.encode("shift_jis")
        return part.encode("iso2022_jp").replace(b"\x1b(B", b"\x1b(J")

    return _each_part(text, encode)


def _escaped(prefix: bytes, codec: str) -> Callable[[str], bytes]:
    def encode(part: str) -> bytes:
        return part.encode() if part.isascii() else prefix + part.encode(codec)

    return lambda text: _each_part(text, encode)


def _in(codec: str) -> Callable[[str], bytes]:
    return lambda text: text.encode(codec)


ENCODERS: dict[str, Callable[[str], bytes]] = {
    "": _in("ascii"),
    "ISO_IR 13": _in("shift_jis"),
    "ISO 2022 IR 13\\ISO 2022 IR 87": _jis_with_kana,
    "\\ISO 2022 IR 87": _japanese,
    "ISO 2022 IR 6\\ISO 2022 IR 87": _japanese,
    "\\ISO 2022 IR 149": _escaped(b"\x1b$)C", "euc_kr"),
    "\\ISO 2022 IR 58": _escaped(b"\x1b$)A", "gb2312"),
    "\\ISO 2022 IR 144": _escaped(b"\x1b-L", "iso8859_5"),
    "ISO_IR 192": _in("utf-8"),
    "GB18030": _in("gb18030"),
    "GBK": _in("gbk"),
    "ISO_IR 100": _in("latin_1"),
    "ISO_IR 101": _in("iso8859_2"),
    "ISO_IR 109": _in("iso8859_3"),
    "ISO_IR 110": _in("iso8859_4"),
    "ISO_IR 126": _in("iso8859_7"),
    "ISO_IR 127": _in("iso8859_6"),
    "ISO_IR 138": _in("iso8859_8"),
    "ISO_IR 144": _in("iso8859_5"),
    "ISO_IR 148": _in("iso8859_9"),
    "ISO_IR 166": _in("tis_620"),
    "ISO_IR 203": _in("iso8859_15"),
}

# what pydicom's files leave out: name, declared set
MADE = {
    "K2": ("Zhang^XiaoDong=张^小东", "\\ISO 2022 IR 58"),
    "GBK": ("Li^Na=李^娜", "GBK"),
    "Thai": ("สมชาย^ใจดี", "ISO_IR 166"),
    "Polish": ("Łukasiewicz^Żaneta", "ISO_IR 101"),
    "Maltese": ("Ħalim^Ġorġ", "ISO_IR 109"),
    "Latvian": ("Bērziņš^Jānis", "ISO_IR 110"),
    "Turkish": ("Şahin^Gülşağ", "ISO_IR 148"),
    "Euro": ("Œuvre^Zoë€", "ISO_IR 203"),
    "Kana": ("ｽｽﾞｷ^ｲﾁﾛｳ", "ISO_IR 13"),
    "Wide": ("Satou^Ken=佐藤^健=さとう^けん", "ISO_IR 192"),
    "Cyrillic2022": ("Ivanov^Ivan=Иванов^Иван", "\\ISO 2022 IR 144"),
}

# declared one thing, written another: the name as it must be read, the declaration, the bytes
WRONG = {
    "SjisUnder13": ("高橋^次郎", "ISO_IR 13", "高橋^次郎".encode("shift_jis")),
    "SjisUnder87": ("渡辺^三郎", "\\ISO 2022 IR 87", "渡辺^三郎".encode("shift_jis")),
    "Utf8Undeclared": ("Gonçalves^João", "", "Gonçalves^João".encode()),
    "Latin1Undeclared": ("Müßig^Jörg", "", "Müßig^Jörg".encode("latin_1")),
    "GbkUnder192": ("陈^伟", "ISO_IR 192", "陈^伟".encode("gb18030")),
    "Misspelt": ("Ærø^Åse", "ISO-IR 100", "Ærø^Åse".encode("latin_1")),
    "Unknown": ("Plain^Name", "KOI-8", b"Plain^Name"),
    "EscapedUndeclared": ("伊藤^四郎", "", _japanese("伊藤^四郎")),
}
PEERS_SET = ("中村^五郎", "", _japanese("中村^五郎"))


@dataclass
class Archive:
    """The node with every example in it, and the Study UID of each."""

    node: Node
    studies: dict[str, str]
    folder: Path

    def find(self, text: str, character_set: str, **more) -> list:
        keys = {
            "0008,0005 CS": character_set.encode(),
            "0010,0010 PN": ENCODERS[character_set](text),
            "0020,000d UI": b"",
        }
        return find_by_file(self.node, self.folder, keys, **more)

    def found(self, text: str, character_set: str, **more) -> set[str]:
        """Return the names of the examples that a query by PN finds."""
        names = {uid: name for name, uid in self.studies.items()}
        return {names[answer.StudyInstanceUID] for answer in self.find(text, character_set, **more)}


def _dataset(number: int, name: bytes, character_set: str) -> bytes:
    study = f"2.25.77.{number}"
    declared = element(0x00080005, "CS", character_set.encode()) if character_set else b""
    return b"".join((
        declared,
        element(0x00080016, "UI", CT_STORAGE.encode()),
        element(0x00080018, "UI", f"{study}.1.1".encode()),
        element(0x00080060, "CS", b"CT"),
        element(0x00100010, "PN", name),
        element(0x00100020, "LO", f"MADE{number}".encode()),
        element(0x0020000D, "UI", study.encode()),
        element(0x0020000E, "UI", f"{study}.1".encode()),
    ))  # fmt: skip


def _made(folder: Path, label: str, number: int, name: bytes, character_set: str) -> WireFile:
    raw = _dataset(number, name, character_set)
    return with_own_meta(folder / f"{label}.dcm", raw, dataset_of(raw, EXPLICIT), EXPLICIT)


def _standard(folder: Path) -> dict[str, WireFile]:
    files = {}
    for path in map(Path, get_charset_files("*.dcm")):
        if path.stem in STANDARD:
            file = read_wire_file(path)
            raw = path.read_bytes()[file.offset :]
            dataset = dataset_of(raw, file.syntax)
            files[path.stem] = with_own_meta(folder / path.name, raw, dataset, file.syntax)
    return files


@pytest.fixture(autouse=True)
def _pydicom_knows_latin_9(monkeypatch: pytest.MonkeyPatch) -> None:
    """ISO_IR 203 is in the standard since 2023; pydicom does not have it yet."""
    monkeypatch.setitem(python_encoding, "ISO_IR 203", "iso8859_15")


@pytest.fixture(scope="module")
def archive(tmp_path_factory, s3_server, s3_bucket) -> Iterator[Archive]:
    """Store every example, each as a study of its own."""
    folder = tmp_path_factory.mktemp("character-sets")
    files = _standard(folder)
    made = {label: (ENCODERS[term](text), term) for label, (text, term) in MADE.items()}
    made |= {label: (raw, term) for label, (_, term, raw) in WRONG.items()}
    for number, (label, (raw, term)) in enumerate(made.items()):
        files[label] = _made(folder, label, number, raw, term)
    peers_own = _made(folder, "PeersSet", 999, PEERS_SET[2], PEERS_SET[1])
    with running_node(folder / "node", s3_server, s3_bucket, "receive", peers=PEERS) as node:
        assert set(send_raw(node, list(files.values()))) == {0x0000}
        assert send_raw(node, [peers_own], "OLDJAPAN") == [0x0000]
        studies = {label: file.study for label, file in files.items()}
        assert len(set(studies.values())) == len(studies)
        yield Archive(node, studies | {"PeersSet": peers_own.study}, folder)


KANJI_SETS = [
    "\\ISO 2022 IR 87",
    "ISO 2022 IR 6\\ISO 2022 IR 87",
    "ISO 2022 IR 13\\ISO 2022 IR 87",
    "ISO_IR 192",
    "GB18030",
]


@pytest.mark.parametrize("character_set", KANJI_SETS)
def test_kanji_are_found_in_every_set_that_has_them(archive: Archive, character_set: str) -> None:
    """山田 holds the byte of ^ in no set, 太 and others that of \\\\ in Shift-JIS and GB 18030."""
    for text in ("山田^太郎", "山田*", "=山田^太郎", "山?^太郎", "*=山田*=*"):
        assert archive.found(text, character_set) == {"chrH31", "chrH32"}, text


@pytest.mark.parametrize("character_set", ["\\ISO 2022 IR 87", "ISO_IR 192"])
def test_kana_are_found(archive: Archive, character_set: str) -> None:
    """Hiragana of the phonetic group, and of a name that has no other."""
    for text in ("やまだ^たろう", "やまだ*"):
        assert archive.found(text, character_set) == {"chrH31", "chrH32", "chrJapMulti"}
    assert archive.found("==やまだ^たろう", character_set) == {"chrH31", "chrH32"}


def test_half_width_kana_are_found(archive: Archive) -> None:
    """In ISO_IR 13, and in UTF-8 both half-width and full-width: width does not count."""
    assert archive.found("ﾔﾏﾀﾞ^ﾀﾛｳ", "ISO_IR 13") == {"chrH32"}
    assert archive.found("ﾔﾏﾀﾞ*", "ISO 2022 IR 13\\ISO 2022 IR 87") == {"chrH32"}
    for text in ("ﾔﾏﾀﾞ^ﾀﾛｳ", "ヤマダ^タロウ", "ヤマダ*"):
        assert archive.found(text, "ISO_IR 192") == {"chrH32"}
    assert archive.found("スズキ^イチロウ", "\\ISO 2022 IR 87") == {"Kana"}


@pytest.mark.parametrize("text", ["Yamada^Tarou", "YAMADA^*", "yamada*", "Yamada^Tarou=山田*"])
def test_romaji_are_found_in_any_case(archive: Archive, text: str) -> None:
    """The alphabetic group alone, or with another."""
    assert archive.found(text, "\\ISO 2022 IR 87") == {"chrH31"}


@pytest.mark.parametrize(
    ("text", "character_set", "expected"),
    [
        ("Hong^Gildong", "", {"chrI2"}),
        ("홍^길동", "\\ISO 2022 IR 149", {"chrI2"}),
        ("洪^吉洞", "\\ISO 2022 IR 149", {"chrI2"}),
        ("==홍*", "ISO_IR 192", {"chrI2"}),
        ("김희중", "\\ISO 2022 IR 149", {"chrKoreanMulti"}),
        ("Wang^XiaoDong", "", {"chrX1", "chrX2"}),
        ("王^小東", "ISO_IR 192", {"chrX1"}),
        ("王^小东", "GB18030", {"chrX2"}),
        ("王*", "GBK", {"chrX1", "chrX2"}),
        ("王^小东", "\\ISO 2022 IR 58", {"chrX2"}),
        ("王*", "\\ISO 2022 IR 87", {"chrX1", "chrX2"}),
        ("张^小东", "\\ISO 2022 IR 58", {"K2"}),
        ("张*", "ISO_IR 192", {"K2"}),
        ("李^娜", "GB18030", {"GBK"}),
        ("Buc^Jérôme", "ISO_IR 100", {"chrFren"}),
        ("BUC^JÉRÔME", "ISO_IR 192", {"chrFren"}),
        ("buc^jérôme", "ISO_IR 148", {"chrFren"}),
        ("Äneas*", "ISO_IR 100", {"chrGerm"}),
        ("äneas^rüdiger", "ISO_IR 101", {"chrGerm"}),
        ("Διονυσιος", "ISO_IR 126", {"chrGreek"}),
        ("ΔΙΟΝΥΣΙΟΣ", "ISO_IR 126", {"chrGreek"}),
        ("Διον*", "ISO_IR 192", {"chrGreek"}),
        ("Διον*", "\\ISO 2022 IR 87", {"chrGreek"}),
        ("Люкceмбypг", "ISO_IR 144", {"chrRuss"}),
        ("люк*", "ISO_IR 192", {"chrRuss"}),
        ("Иванов^Иван", "ISO_IR 144", {"Cyrillic2022"}),
        ("Иванов*", "\\ISO 2022 IR 144", {"Cyrillic2022"}),
        ("قباني^لنزار", "ISO_IR 127", {"chrArab"}),
        ("قباني*", "ISO_IR 192", {"chrArab"}),
        ("שרון^דבורה", "ISO_IR 138", {"chrHbrw"}),
        ("*^דבורה", "ISO_IR 192", {"chrHbrw"}),
        ("สมชาย^ใจดี", "ISO_IR 166", {"Thai"}),
        ("สมชาย*", "ISO_IR 192", {"Thai"}),
        ("Łukasiewicz^Żaneta", "ISO_IR 101", {"Polish"}),
        ("łukasiewicz*", "ISO_IR 192", {"Polish"}),
        ("Ħalim*", "ISO_IR 109", {"Maltese"}),
        ("Bērziņš*", "ISO_IR 110", {"Latvian"}),
        ("Şahin^Gülşağ", "ISO_IR 148", {"Turkish"}),
        ("Œuvre*", "ISO_IR 203", {"Euro"}),
        ("佐藤*", "\\ISO 2022 IR 87", {"Wide"}),
        ("*^健", "ISO_IR 192", {"Wide"}),
    ],
)
def test_names_of_every_script_are_found(
    archive: Archive, text: str, character_set: str, expected: set[str]
) -> None:
    """Asked in the set of the name, in another that has it, and in UTF-8."""
    assert archive.found(text, character_set) == expected


def test_answers_decode_to_the_names_that_were_stored(archive: Archive) -> None:
    """One universal query; pydicom, warnings being errors, reads each answer by its own set."""
    labels = {uid: label for label, uid in archive.studies.items()}
    answers = archive.find("", "")
    assert len(answers) == len(archive.studies)
    names = {labels[answer.StudyInstanceUID]: str(answer.PatientName) for answer in answers}
    # pydicom leaves the escape sequences of ISO 2022 IR 58, which PS3.5 K.2 demands, in the text
    names["K2"] = names["K2"].replace("\x1b$)A", "")
    expected = STANDARD | {label: text for label, (text, _) in MADE.items()}
    expected |= {label: text for label, (text, _, _) in WRONG.items()}
    expected["PeersSet"] = PEERS_SET[0]
    assert names == expected


def test_answers_come_in_the_set_of_the_study(archive: Archive) -> None:
    """The standard's examples keep their own (0008,0005), whatever the query was written in."""
    labels = {uid: label for label, uid in archive.studies.items()}
    sets = {
        labels[answer.StudyInstanceUID]: answer.get("SpecificCharacterSet")
        for answer in archive.find("*", "ISO_IR 192")
    }
    assert list(sets["chrH31"]) == ["", "ISO 2022 IR 87"]
    assert list(sets["chrH32"]) == ["ISO 2022 IR 13", "ISO 2022 IR 87"]
    assert list(sets["chrI2"]) == ["", "ISO 2022 IR 149"]
    assert sets["chrX1"] == "ISO_IR 192"
    assert sets["chrX2"] == "GB18030"
    assert sets["chrGreek"] == "ISO_IR 126"
    assert sets["Thai"] == "ISO_IR 166"
    assert sets["Misspelt"] == "ISO_IR 100"
    assert sets["Unknown"] is None


@pytest.mark.parametrize("label", WRONG)
def test_wrongly_declared_names_are_found_as_they_were_meant(archive: Archive, label: str) -> None:
    """In UTF-8: Shift-JIS under ISO_IR 13, UTF-8 without a word, terms that nobody knows."""
    assert archive.found(WRONG[label][0], "ISO_IR 192") == {label}


def test_a_peers_own_set_holds_where_nothing_is_declared(archive: Archive) -> None:
    """For its datasets, and for its queries."""
    assert archive.found("中村*", "ISO_IR 192") == {"PeersSet"}
    keys = {"0010,0010 PN": _japanese("中村^五郎"), "0020,000d UI": b""}
    (answer,) = find_by_file(archive.node, archive.folder, keys, calling_ae="OLDJAPAN")
    assert answer.StudyInstanceUID == archive.studies["PeersSet"]


@pytest.mark.parametrize("level", ["PATIENT", "SERIES", "IMAGE"])
def test_names_decode_at_every_level(archive: Archive, level: str) -> None:
    """Patient Root, by ID: the name comes back whole at the level of the patient."""
    keys = {
        "0008,0005 CS": b"\\ISO 2022 IR 87",
        "0010,0010 PN": _japanese("山田*") if level == "PATIENT" else b"",
        "0010,0020 LO": b"H31EXAMPLE",
    }
    if level != "PATIENT":
        keys["0020,000d UI"] = archive.studies["chrH31"].encode()
        keys["0020,000e UI"] = b""
    if level == "IMAGE":
        series = find_by_file(archive.node, archive.folder, keys, level="SERIES", patient_root=True)
        keys["0020,000e UI"] = str(series[0].SeriesInstanceUID).encode()
        keys["0008,0018 UI"] = b""
    (answer,) = find_by_file(archive.node, archive.folder, keys, level=level, patient_root=True)
    assert answer.PatientID == "H31EXAMPLE"
    if level == "PATIENT":
        assert answer.PatientName == STANDARD["chrH31"]
