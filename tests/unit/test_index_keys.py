"""Keys sort, delimit themselves and come back as what they were."""

from hypothesis import example, given
from hypothesis import strategies as st

from appliance.index.keys import (
    TEXT_KEY_LENGTH_MAX,
    pack_id_of,
    pack_reference,
    pack_uid,
    text_key,
    text_prefix,
    unpack_uid,
    unpack_uids,
)

uids = st.from_regex(r"[0-9.]{1,64}", fullmatch=True)
odd = st.text(max_size=30)


@given(st.lists(st.one_of(uids, odd), min_size=1, max_size=4))
def test_keys_uids_in_a_row_come_back(row: list[str]) -> None:
    """Packed UIDs, and texts that are no UIDs, can be put in a row and taken apart."""
    assert unpack_uids(b"".join(map(pack_uid, row))) == row


@given(uids, uids)
def test_keys_keep_the_order_of_uids(one: str, other: str) -> None:
    """Packing keeps the order of texts, so that neighbours stay neighbours."""
    assert (pack_uid(one) < pack_uid(other)) == (one < other)


@given(st.one_of(uids, odd), st.one_of(uids, odd))
def test_keys_no_uid_begins_another(one: str, other: str) -> None:
    """A search by the packed UID finds that UID alone."""
    assert one == other or not pack_uid(other).startswith(pack_uid(one))


def test_keys_halve_a_uid() -> None:
    """Two characters take a byte."""
    uid = "1.2.392.200036.9116.2.6.1.48.1214833767.1398756123"
    assert len(pack_uid(uid)) == len(uid) // 2 + 1


@given(st.text(max_size=200), st.text(max_size=200))
def test_keys_of_texts_are_equal_only_for_equal_texts(one: str, other: str) -> None:
    """A patient's key is never another patient's, however long the identifiers are."""
    assert (text_key(one) == text_key(other)) == (one == other)


@given(st.text(max_size=200))
def test_keys_of_texts_end_with_their_only_zero(text: str) -> None:
    """A text key delimits itself and fits into LMDB's 511 bytes three times over."""
    key = text_key(text)
    assert key.index(0) == len(key) - 1 <= TEXT_KEY_LENGTH_MAX


def test_keys_of_long_texts_that_begin_alike_differ() -> None:
    """What is cut off is still told apart by its hash."""
    assert text_key("山" * 64 + "a") != text_key("山" * 64 + "b")


@given(st.text(max_size=20), st.text(max_size=5))
def test_keys_of_texts_begin_with_their_prefix(head: str, tail: str) -> None:
    """A prefix search meets every text that begins so."""
    assert text_key(head + tail).startswith(text_prefix(head))


@given(st.integers(0, 2**128 - 1))
def test_pack_references_are_sixteen_bytes_and_sort_like_ids(value: int) -> None:
    """A pack id comes back from its reference, and references sort like ids."""
    reference = value.to_bytes(16, "big")
    pack_id = pack_id_of(reference)
    assert pack_reference(pack_id) == reference
    assert len(pack_id) == 26
    assert pack_id <= "7" + "z" * 25


@given(st.text(max_size=30))
@example("fourteen chars")
def test_pack_references_keep_any_other_name(name: str) -> None:
    """A name that is no pack id is kept as it is."""
    assert pack_id_of(pack_reference(name)) == name


def test_unpack_uid_says_where_the_uid_ends() -> None:
    """The next UID of a key begins where the first ended."""
    key = pack_uid("1.2.3") + pack_uid("4.5")
    uid, end = unpack_uid(key)
    assert (uid, unpack_uid(key, end)[0]) == ("1.2.3", "4.5")
