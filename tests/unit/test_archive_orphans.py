"""Old uploads in parts are aborted, but never one that this node is still at."""

from datetime import timedelta

import msgspec

from appliance.archive.upload import SpoolNote
from appliance.remote.store import OrphanUpload, UploadProgress
from tests.support.archive_box import Box, box  # noqa: F401


def test_an_upload_that_a_spool_note_remembers_is_not_aborted(box: Box) -> None:
    """A pack may be on its way for days on a slow line."""
    begun = box.clock.now() - timedelta(days=3)
    box.store.orphans = [
        OrphanUpload("packs/ours", "ours", begun),
        OrphanUpload("packs/gone", "gone", begun),
    ]
    note = SpoolNote(
        sha256=b"", crc32=0, size_bytes=0, plain_size_bytes=0, age_header=b"", file_key=b"",
        progress=UploadProgress("ours", 5 * 2**20),
    )  # fmt: skip
    spool = box.layout.spool_path("pack").removesuffix(".tar.age")
    box.files.write_atomic(f"{spool}.json", msgspec.json.encode(note))
    box.files.write_atomic(f"{spool}-torn.json", b"{")
    assert box.upload().abort_orphans() == 1
    assert [each.upload_id for each in box.store.orphans] == ["ours"]
