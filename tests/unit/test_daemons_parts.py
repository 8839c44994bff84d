"""What a daemon's parts say of an instance, by what other processes have told."""

from pathlib import Path

from appliance.archive.commitment import NOT_KNOWN_YET
from appliance.archive.status import UplinkStatus, write_uplink_status
from appliance.config.load import loads
from appliance.daemons.parts import Parts
from tests.support.archive_box import NODE, Box, box, sample  # noqa: F401

CONFIG = """
[node]
name = "{node}"
data_dir = "{data}"
[[dicom.peers]]
ae_title = "PACS1"
addresses = ["192.0.2.10/32"]
allow = ["echo", "store"]
[cache]
capacity = "1 GiB"
[cloud]
bucket = "archive"
region = "ap-northeast-1"
[keys]
recovery = ["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"]
"""


def test_commitment_asks_what_uplink_and_indexer_have_told(box: Box) -> None:
    """An unfit bucket holds `cloud` and `locked`; an index that is not whole, what it lacks."""
    each = sample(1, 1)
    box.store_sample(each)
    box.drain()
    box.index.close()
    parts = Parts(loads(CONFIG.format(node=NODE, data=Path(box.layout.data_dir))))
    try:
        asked = [each.sop_instance_uid, "1.2.3"]
        found = parts.reached(asked)
        assert list(found) == [each.sop_instance_uid]
        assert found[each.sop_instance_uid].locked
        now_s = parts.clock.now().timestamp()
        status = UplinkStatus(now_s, 1, "up", 1, 0.0, None, [], bucket_trusted=False)
        write_uplink_status(parts.files, parts.layout, status)
        held = parts.reached(asked)[each.sop_instance_uid]
        assert (held.local, held.cloud, held.locked) == (True, False, False)
        note = parts.condition.begun_now(parts.index.generations.current(), "a test")
        parts.condition.note_incomplete(note)
        assert parts.reached(asked)["1.2.3"] == NOT_KNOWN_YET
        assert parts.reached(asked)[each.sop_instance_uid].local
    finally:
        parts.close()
