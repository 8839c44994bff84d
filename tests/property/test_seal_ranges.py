"""Any range of the plaintext is had from the chunks that its ciphertext range names."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.seal.age import (
    CHUNK_BYTES,
    AgeRange,
    encrypt_bytes,
    head_length,
    unwrap_file_key,
)
from appliance.seal.age_header import NONCE_BYTES
from appliance.seal.identity import Identity

LENGTHS = (0, 1, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 300_001)


@pytest.fixture(scope="module")
def objects() -> list[tuple[bytes, bytes, AgeRange]]:
    identity = Identity.generate()
    made = []
    for length in LENGTHS:
        plain = Random(length).randbytes(length)
        sealed = encrypt_bytes(plain, [identity.recipient])
        head = sealed[: head_length(sealed)]
        key = unwrap_file_key(head[:-NONCE_BYTES], [identity])
        made.append((plain, sealed, AgeRange(key, head, len(sealed))))
    return made


EDGE = st.one_of(
    st.integers(0, 310_000),
    st.builds(
        lambda chunk, shift: max(0, chunk * CHUNK_BYTES + shift),
        st.integers(0, 5),
        st.integers(-2, 2),
    ),
)


@given(number=st.integers(0, len(LENGTHS) - 1), start=EDGE, end=EDGE)
@settings(max_examples=400)
def test_a_range_is_the_slice_of_the_plaintext(objects, number, start, end):
    """And no byte more is fetched than the chunks that hold it."""
    plain, sealed, age_range = objects[number]
    assert age_range.plaintext_length == len(plain)
    low, high = age_range.ciphertext_range(start, end)
    assert age_range.decrypt_slice(sealed[low:high], start, end) == plain[start:end]
    wanted = len(plain[start:end])
    assert high - low <= wanted + wanted // CHUNK_BYTES * 16 + 2 * (CHUNK_BYTES + 16)
    assert low <= high <= len(sealed)
