"""Another box's entries under this node's name stop uploading, whatever keys they are sealed to."""

import msgspec
import pytest

from appliance.archive.ledger import LedgerState, state_path
from appliance.archive.ledger_entry import FIRST_PREVIOUS, build_entry, entry_key, seal_entry
from appliance.archive.records import Opened
from appliance.foundation.errors import ForeignWriter
from appliance.seal.identity import load_identity, new_identity_file
from appliance.seal.signing import SigningKey
from tests.support.archive_box import NODE, Box, box  # noqa: F401

AT = "2024-11-23T22:12:58.000000Z"


@pytest.mark.parametrize("known", [False, True])
def test_an_entry_sealed_to_other_keys_is_a_foreign_writer(box: Box, tmp_path, known) -> None:
    """Neither a failed decryption nor a crash: the problem has its name and its hint."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    new_identity_file(str(foreign / "node.key"))
    entry = build_entry(
        NODE, 1, "ab" * 16, AT, FIRST_PREVIOUS, [Opened("ab" * 16, "test", AT)],
        SigningKey.create(str(foreign / "signing.pem")),
    )  # fmt: skip
    sealed = seal_entry(entry, [load_identity(str(foreign / "node.key"))[0].recipient])
    box.store.seed(entry_key(NODE, 1), sealed)
    if known:  # the state names an incarnation, which nobody can read in that entry
        state = msgspec.json.encode(LedgerState(["ab" * 16], 0))
        box.files.write_atomic(state_path(box.layout), state)
    with pytest.raises(ForeignWriter) as raised:
        box.ledger().start()
    assert "azekura replace" in raised.value.hint
    assert box.store.content(entry_key(NODE, 1)) == sealed
