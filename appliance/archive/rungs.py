"""Which rung an instance has reached: what storage commitment may promise of it.

`local`: its bytes are synced here, or verified in the bucket. `cloud`: verified. `locked`:
verified, with a retain-until date that was read back. An instance of which several versions were
received counts by the newest. While the bucket is known to be unfit, what it holds counts for
nothing: `cloud` and `locked` are held, and `local` is what lies on this disk.
"""

from collections.abc import Sequence

from appliance.archive.commitment import Reached
from appliance.dicom.uid import KEY_OBJECT_SELECTION
from appliance.index.records import StoredInstance
from appliance.index.view import View


def reached(
    view: View, sop_instance_uids: Sequence[str], *, bucket_trusted: bool
) -> dict[str, Reached]:
    """Return the rung of each instance that is known, by SOP Instance UID."""
    found = {}
    for sop_instance_uid in sop_instance_uids:
        for place in view.find_sop(sop_instance_uid):
            instance = view.instance(place.study_instance_uid, sop_instance_uid)
            if instance is not None:
                found[sop_instance_uid] = _reached(view, instance, bucket_trusted)
    return found


def _reached(view: View, instance: StoredInstance, bucket_trusted: bool) -> Reached:
    version = instance.versions[-1]
    local = cloud = locked = False
    for copy in version.copies:
        pack = view.pack(copy.pack_id)
        if pack is not None:
            local = local or pack.local
            if pack.cloud is not None and bucket_trusted:
                cloud = True
                locked = locked or pack.cloud.locked_until_us > 0
    return Reached(
        sop_class_uid=version.sop_class_uid,
        local=local or cloud,
        cloud=cloud,
        locked=locked,
        # A rejection note is hidden with what it rejects; whoever sent it may know it safe.
        hidden=instance.hidden and version.sop_class_uid != KEY_OBJECT_SELECTION,
    )
