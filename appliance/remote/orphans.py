"""Uploads in parts that nobody will complete: they cost money and are seen by no listing."""

from collections.abc import Container

from appliance.remote.store import ObjectStore

ORPHAN_AGE_S = 24 * 3600.0


def abort_orphans(
    store: ObjectStore, keep_upload_ids: Container[str] = (), older_than_s: float = ORPHAN_AGE_S
) -> int:
    """Abort uploads under our prefix begun over a day ago, but those; return how many.

    Another node's upload of that age is aborted too, and then begun anew by that node.
    """
    count = 0
    for orphan in store.orphan_uploads(older_than_s):
        if orphan.upload_id not in keep_upload_ids:
            store.abort_upload(orphan.key, orphan.upload_id)
            count += 1
    return count
