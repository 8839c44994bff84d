"""The matching rules of PS3.4 C.2.2.2."""

import time

import pytest

from appliance.dicom.folding import fold, name_groups
from appliance.dicom.matching import compile_key

NAME = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def matches(vr: str, key: object, stored: object) -> bool:
    """Return whether a key of this VR matches."""
    return compile_key(0, vr, key).matches(stored)


@pytest.mark.parametrize("key", ["", "*", None, "  "])
def test_an_empty_key_matches_everything(key):
    """Universal matching takes absent values too (C.2.2.2.3)."""
    for vr in ("PN", "LO", "DA", "TM", "UI", "IS", "SQ"):
        matcher = compile_key(0, vr, [] if vr == "SQ" else key)
        assert matcher.universal
        assert matcher.matches(None)
        assert matcher.matches("x")


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("YAMADA^TAROU", True),
        ("yamada^tarou^^^", True),
        ("yamada", False),
        ("yam*", True),
        ("YAMADA^?AROU", True),
        ("*tarou", True),
        ("山田^太郎", True),
        ("山田*", True),
        ("やまだ*", True),
        ("=山田*", True),
        ("==やまだ^たろう", True),
        ("yamada*=山田*=", True),
        ("山田*=", False),
        ("suzuki*=山田*", False),
        ("=*=*", True),
        ("ﾔﾏﾀﾞ*", False),
        ("ｙａｍａｄａ*", True),
        ("yamada ^ tarou", True),
    ],
)
def test_a_name_matches_in_its_three_groups(key: str, found: bool):
    """Kana or kanji alone find the person; with = each group matches its own."""
    assert matches("PN", key, NAME) is found


def test_half_width_kana_finds_full_width():
    """Width is no difference in a name."""
    assert matches("PN", "ﾔﾏﾀﾞ^*", "ヤマダ^タロウ")
    assert matches("PN", "ヤマダ^タロウ", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎")


def test_a_star_behind_the_caret_takes_a_name_without_given_name():
    """Empty components at the end may be left out, so "Yamada" is "Yamada^"."""
    assert matches("PN", "YAMADA^*", "Yamada")
    assert not matches("PN", "YAMADA^*", "Yamadas")


def test_only_names_ignore_case():
    """C.2.2.2.1: everything but PN is case-sensitive."""
    assert matches("PN", "doe^john", "DOE^JOHN")
    assert not matches("LO", "abdomen", "ABDOMEN")
    assert not matches("LO", "abd*", "ABDOMEN")
    assert matches("LO", "ABD*", "ABDOMEN")


@pytest.mark.parametrize(
    ("vr", "key", "stored", "found"),
    [
        ("LO", "A*C", "ABC", True),
        ("LO", "A*C", "ABCD", False),
        ("LO", "A?C", "ABC", True),
        ("LO", "A?C", "AC", False),
        ("LO", "?*", "", False),
        ("LO", "*B*D*", "ABCD", True),
        ("LO", "AB*BC", "ABC", False),
        ("LO", "a.c", "abc", False),
        ("LO", "[a]*", "[a]b", True),
        ("CS", "C?", "CT", True),
        ("CS", "CT", "MR\\CT", True),
        ("CS", "CT\\MR", "MR", True),
        ("CS", "C*\\MR", "CT", True),
        ("ST", "A\\B", "A\\B", True),
        ("LT", "*B", "A\\B", True),
        ("UI", "1.2\\1.3", "1.3", True),
        ("UI", "1.2\\1.3", "1.4", False),
        ("UI", "1.2*", "1.2.3", False),
        ("IS", "007", "7", True),
        ("IS", "7", "7\\8", True),
        ("DS", "1.0", "1", True),
        ("IS", "7*", "71", False),
        ("SH", " A1 ", "A1", True),
        ("LO", '""', None, True),
        ("LO", '""', "x", False),
        ("LO", "x", None, False),
    ],
)
def test_single_values_lists_and_wildcards(vr: str, key: str, stored: str | None, found: bool):
    """C.2.2.2.1, .2, .4 and .7 for each kind of VR."""
    assert matches(vr, key, stored) is found


@pytest.mark.parametrize(
    ("vr", "key", "stored", "found"),
    [
        ("DA", "20240101", "20240101", True),
        ("DA", "20240101", "20240102", False),
        ("DA", "1997.04.22", "19970422", True),
        ("DA", "19970422", "1997.04.22", True),
        ("DA", "20240101-20240131", "20240131", True),
        ("DA", "20240101-20240131", "20240201", False),
        ("DA", "-20240131", "19990101", True),
        ("DA", "20240101-", "20991231", True),
        ("DA", "20240101-", "20231231", False),
        ("DA", "20240101-", None, False),
        ("DA", "20240101-", "", False),
        ("DA", "2024*", "20240507", True),
        ("DA", "garbage", "20240101", False),
        ("DA", "1997.04.01-1997.04.30", "19970422", True),
        ("TM", "0700-0800", "075959.5", True),
        ("TM", "0700-0800", "080030", True),
        ("TM", "0700-0800", "0801", False),
        ("TM", "-12", "125959", True),
        ("TM", "-12", "13", False),
        ("TM", "070000", "0700", True),
        ("TM", "07:00:00", "070000", True),
        ("TM", "070000", "070000.123", True),
        ("TM", "070000.1", "070000.2", False),
        ("TM", "2300-0100", "2330", False),
        ("DT", "20240101-20240102", "20240102235959", True),
        ("DT", "202402-202402", "20240229120000", True),
        ("DT", "20240101-", "20231231", False),
        ("DT", "20240101120000-0500", "20240101170000+0000", True),
        ("DT", "20240101120000-0500", "20240101120000", True),
        ("DT", "20240101120000+0900-20240101130000+0900", "20240101033000+0000", True),
        ("DT", "20240101120000+0900-20240101130000+0900", "20240101123000+0000", False),
        ("DT", "2024", "20240607", True),
    ],
)
def test_dates_and_times(vr: str, key: str, stored: str | None, found: bool):
    """C.2.2.2.5 with open ends, legacy forms, partial times and offsets."""
    assert matches(vr, key, stored) is found


def test_a_sequence_key_matches_any_item_with_all_its_keys():
    """C.2.2.2.6: one stored item must match every key of the item asked for."""
    stored = [{0x00401001: "R1", 0x00400009: "S1"}, {0x00401001: "R2", 0x00400009: "S2"}]
    assert matches("SQ", [{0x00401001: "R2"}], stored)
    assert matches("SQ", [{0x00401001: "R*", 0x00400009: "S2"}], stored)
    assert not matches("SQ", [{0x00401001: "R1", 0x00400009: "S2"}], stored)
    assert not matches("SQ", [{0x00401001: "R1"}], None)
    assert matches("SQ", [{0x00401001: ""}], None)
    assert matches("SQ", [], None)


def test_hints_admit_everything_that_matches():
    """What an index narrows by never loses a match."""
    key = compile_key(0, "PN", "YAMA*")
    assert key.prefix == "yama"
    assert key.exact is None
    assert compile_key(0, "PN", "yamada^*").prefix == "yamada"
    assert compile_key(0, "PN", "=山田^太郎").exact == "山田^太郎"
    assert compile_key(0, "PN", "*=山田*").prefix == "山田"
    assert compile_key(0, "PN", "*da").prefix is None
    assert compile_key(0, "LO", "AbC").exact == "AbC"
    assert compile_key(0, "UI", "1.2\\1.3").uids == ("1.2", "1.3")
    days = compile_key(0, "DA", "20240101-20240131")
    assert (days.low, days.high, days.exact) == ("20240101", "20240131", None)
    assert compile_key(0, "DA", "2024.01.01").exact == "20240101"
    assert compile_key(0, "IS", "007").exact is None


def test_stars_do_not_backtrack():
    """A hostile pattern costs no more than its length times the text's."""
    pattern = "*a" * 30 + "*b"
    started = time.monotonic()
    assert not matches("LO", pattern, "a" * 1000)
    assert not matches("PN", pattern, "a" * 1000)
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("text", ["Ａｂｃ^", "ﬁn", "İ", "ﾔﾏﾀﾞ", "ẞ^ ^", " x ^ y "])
def test_folding_is_idempotent(text: str):
    """Folded keys can be folded again."""
    assert fold(fold(text)) == fold(text)


def test_name_groups_are_folded_one_by_one():
    """The index keys each group."""
    assert name_groups(NAME) == ["yamada^tarou", "山田^太郎", "やまだ^たろう"]
