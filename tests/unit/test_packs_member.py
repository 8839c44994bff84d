"""Names of members: safe to extract, never colliding, and made in one place only."""

import hashlib

import pytest

from appliance.packs.member import file_meta_uid, is_member_name, member_name, round_up
from tests.support import pack_samples


def test_member_name_is_series_and_instance():
    """An ordinary instance is found by its UIDs in the extracted tree."""
    assert member_name("1.2.3", "1.2.3.4") == "1.2.3/1.2.3.4.dcm"


def test_member_name_of_a_further_version_differs_from_the_first():
    """`tar x` must not overwrite one version with another."""
    assert member_name("1.2.3", "1.2.3.4", "0a1b2c3d") == "1.2.3/1.2.3.4~0a1b2c3d.dcm"


@pytest.mark.parametrize(
    "uid", ["", ".", "..", "../../etc/passwd", "1.2/3", "1" * 65, "1.2\0", "\uff11.\uff12", "1.2\n"]
)
def test_member_name_replaces_what_is_no_uid_by_its_hash(uid):
    """Nothing that a sender can put into a UID leaves the folder that is extracted to."""
    hashed = "x-" + hashlib.sha256(uid.encode()).hexdigest()
    name = member_name(uid, uid, "0a1b2c3d")
    assert name == f"{hashed}/{hashed}~0a1b2c3d.dcm"
    assert is_member_name(name)


@pytest.mark.parametrize(
    "name", ["headers.gz", "../1.dcm", "1.2/../3.dcm", "1.2/3", "/1.2/3.dcm", "1.2/3.dcm\n", "./."]
)
def test_is_member_name_refuses_what_member_name_does_not_make(name):
    """A pack that somebody else put into the bucket cannot write outside its folder either."""
    assert not is_member_name(name)


def test_file_meta_uid_reads_class_and_instance():
    """Recovery learns the instance from the file meta group alone."""
    meta = pack_samples.file_meta("1.2.3.4")
    assert file_meta_uid(meta, 2) == pack_samples.CT_STORAGE
    assert file_meta_uid(meta, 3) == "1.2.3.4"
    assert file_meta_uid(meta[:140], 3) == ""


def test_round_up_keeps_a_boundary():
    """A member that ends on a block boundary takes no further block."""
    assert [round_up(offset) for offset in (0, 1, 511, 512, 513)] == [0, 512, 512, 512, 1024]
