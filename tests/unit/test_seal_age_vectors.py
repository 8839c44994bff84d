"""Held to the public age test vectors: what must open opens, what must not does not."""

import hashlib
import io

import pytest

from appliance.foundation.errors import DecryptionFailed
from appliance.seal.age import decrypt_bytes, decrypt_file, header_length
from appliance.seal.age_header import parse_header, unwrap_file_key
from appliance.seal.identity import Identity
from tests.support import age_vectors

# Of 143 vectors those for armor, passphrases and hybrid keys, which are not read, are left out.
X25519_VECTORS = 68
X25519_VECTORS_THAT_OPEN = 14


@pytest.fixture(scope="module")
def vectors() -> list[age_vectors.AgeVector]:
    try:
        found = age_vectors.load().values()
    except age_vectors.VectorsUnavailable as reason:
        pytest.skip(f"NO AGE TEST VECTORS: {reason}")
    return [
        vector
        for vector in found
        if not vector.armored
        and not vector.name.startswith("hybrid")
        and (not vector.passphrase or vector.identities)
    ]


def failure_of(sealed: bytes, identities: list[Identity]) -> str | None:
    """Return which step refuses, in the words of the vectors; None when it opens."""
    try:
        length = header_length(sealed)
        parse_header(sealed[:length])
    except DecryptionFailed:
        return "header failure"
    try:
        unwrap_file_key(sealed[:length], identities)
    except DecryptionFailed as error:
        return {
            "it is sealed to none of the identities that are here": "no match",
            "the header's MAC is wrong": "HMAC failure",
        }.get(error.cause, "header failure")
    try:
        decrypt_bytes(sealed, identities)
    except DecryptionFailed as error:
        early = error.cause == "it ends in front of its payload"
        return "header failure" if early else "payload failure"
    return None


def test_every_x25519_vector_is_judged_as_expected(vectors):
    """Each malformed file is refused, and at the step that the vector names."""
    assert len(vectors) == X25519_VECTORS
    wrong = {}
    for vector in vectors:
        identities = [Identity.parse(text) for text in vector.identities]
        failure = failure_of(vector.sealed, identities) or "success"
        if failure != vector.expect:
            wrong[vector.name] = (vector.expect, failure)
    assert wrong == {}


def test_vectors_that_open_give_their_payload(vectors):
    """Whole, and in a stream."""
    opened = [vector for vector in vectors if vector.expect == "success"]
    assert len(opened) == X25519_VECTORS_THAT_OPEN
    for vector in opened:
        identities = [Identity.parse(text) for text in vector.identities]
        plain = decrypt_bytes(vector.sealed, identities)
        assert hashlib.sha256(plain).hexdigest() == vector.payload_sha256
        assert b"".join(decrypt_file(io.BytesIO(vector.sealed), identities)) == plain


def test_vectors_that_fail_do_so_in_a_stream_as_well(vectors):
    """A stream never ends as if it were whole."""
    for vector in vectors:
        if vector.expect == "success":
            continue
        identities = [Identity.parse(text) for text in vector.identities]
        with pytest.raises(DecryptionFailed):
            list(decrypt_file(io.BytesIO(vector.sealed), identities))


def test_vectors_of_other_recipients_are_refused(vectors):
    """A hybrid or passphrase file is named as not ours, not opened and not a crash."""
    someone = [Identity.generate()]
    for vector in age_vectors.load().values():
        if vector.armored or vector in vectors:
            continue
        with pytest.raises(DecryptionFailed):
            decrypt_bytes(vector.sealed, someone)
