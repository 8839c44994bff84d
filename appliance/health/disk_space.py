"""Whether the disk holds what the cache may become, and whether receiving has room now."""

from dataclasses import dataclass

from appliance.foundation.units import format_size
from appliance.health.check import Findings, error, ok, warning

CONDITION = "disk_space"
TIGHT_FRACTION = 0.05


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Bytes: of packs on this disk, free on its file system, allowed to packs, and kept free."""

    used_bytes: int
    free_bytes: int
    capacity_bytes: int
    reserve_bytes: int


def check_disk_space(space: DiskSpace) -> Findings:
    """Compare free space with the reserve and with what the cache may still grow by."""
    free, reserve = format_size(space.free_bytes), format_size(space.reserve_bytes)
    room_bytes = min(
        space.capacity_bytes - space.used_bytes, space.free_bytes - space.reserve_bytes
    )
    capacity = format_size(space.capacity_bytes)
    if space.free_bytes < space.reserve_bytes:
        return [
            error(
                CONDITION,
                f"{free} are free, less than the reserve of {reserve}: C-STORE is refused",
                "Evict studies, or take away what else lies on the data disk",
            )
        ]
    if room_bytes <= 0:
        return [
            error(
                CONDITION,
                f"packs use {format_size(space.used_bytes)} of {capacity}: C-STORE is refused",
                "Nothing is left to evict: what is pending must reach the bucket, or the cache "
                "must grow",
            )
        ]
    if space.used_bytes + space.free_bytes < space.capacity_bytes + space.reserve_bytes:
        return [
            warning(
                CONDITION,
                f"the disk is too small for cache.capacity {capacity} and a reserve of {reserve}",
                "The watermarks count from what the disk holds, so that less stays cached than "
                "configured: lower cache.capacity, or give the data a disk of its own",
            )
        ]
    if room_bytes < TIGHT_FRACTION * space.capacity_bytes:
        return [
            warning(
                CONDITION,
                f"{format_size(room_bytes)} are left for new studies",
                "Eviction can't keep up: look at what is pending, and at cache.high_water",
            )
        ]
    return [ok(CONDITION, f"{free} free, {format_size(room_bytes)} of them for new studies")]
