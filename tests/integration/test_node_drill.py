"""`azekura drill` on a real node: everything comes back, the ledger has it, status says so."""

from appliance.archive.records import Drilled
from appliance.seal.identity import load_identity, new_identity_file
from tests.support.archive_box import sample
from tests.support.bucket_look import ledger_of
from tests.support.node import Node, node  # noqa: F401
from tests.support.problems import wait_for_problem, wait_until_solved
from tests.support.recording_sender import associate, store

STUDIES = 3
INSTANCES = 4


def test_a_drill_restores_and_is_written_down(node: Node) -> None:
    """With a stranger's identity, with that of the recovery sheet, and with the node's own."""
    node.start()
    samples = [
        sample(study, number, 20_000)
        for study in range(1, STUDIES + 1)
        for number in range(INSTANCES)
    ]
    association = associate(node.port)
    assert {store(association, each) for each in samples} == {0}
    association.release()
    node.drain()
    stranger = node.folder / "stranger.key"
    new_identity_file(str(stranger))
    lost = node.json("drill", "--identity", str(stranger), check=False)
    assert lost["matched"] == 0
    assert lost["findings"]
    assert all(each.startswith("ledger/site-a/") for each in lost["findings"])
    assert wait_for_problem(node, "drill")["hint"].startswith("Hold one")
    held = node.json("drill", "--identity", str(node.recovery_key))
    recovery = load_identity(str(node.recovery_key))[0].recipient
    assert held["identity"] == f"recovery {recovery}"
    assert held["findings"] == []
    assert held["instances"] == held["matched"] == STUDIES * INSTANCES
    assert [each["answers"] for each in held["studies"]] == [1 + 1 + INSTANCES] * STUDIES
    assert 0 < held["first_instance_s"] <= held["took_s"]
    assert held["in_ledger"]
    said = node.azekura("drill", "--studies", "1")
    assert "it proves the bucket, not the sheet in the safe" in said
    status = wait_until_solved(node, "drill")
    assert status["last_drill"]["identity"].startswith("node age1")
    assert f"{INSTANCES} of {INSTANCES} instances came back" in node.azekura("status")
    drills = [
        record
        for entry in ledger_of(node)
        for record in entry.records
        if isinstance(record, Drilled)
    ]
    assert [each.identity.partition(" ")[0] for each in drills] == ["given", "recovery", "node"]
