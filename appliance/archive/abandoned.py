"""Open packs whose writer lives no more: recovered, and closed.

Touches `packs/open/<writer>/` only under that writer's flock.
"""

import os

from appliance.archive.layout import Layout, packs_in
from appliance.foundation import log
from appliance.foundation.errors import Busy, UnsupportedFormat
from appliance.foundation.files import FileLock, FileSystem
from appliance.packs.recovery import recover

_log = log.get("recovery")


def recover_directory(files: FileSystem, layout: Layout, directory: str) -> int:
    """Recover and close the packs in a directory whose flock is held; return how many."""
    count = 0
    for pack_id in packs_in(directory):
        path = os.path.join(directory, f"{pack_id}.tar")
        try:
            recovered = recover(files, path, layout.set_aside)
        except UnsupportedFormat as error:
            _log.error("pack_not_recovered", pack=pack_id, cause=error.cause)
            continue
        if recovered.members:
            files.rename(path, layout.closed_path(pack_id))
            count += 1
        else:
            files.unlink(path)
        _log.info(
            "pack_recovered",
            pack=pack_id,
            members=len(recovered.members),
            set_aside=len(recovered.set_aside),
        )
    for name in os.listdir(directory):
        if name.endswith(".durable"):
            files.unlink(os.path.join(directory, name))
    return count


def recover_abandoned(files: FileSystem, layout: Layout) -> int:
    """Recover the packs of every writer that lives no more; return how many were closed."""
    count = 0
    for writer in layout.writers():
        directory = layout.writer_directory(writer)
        if not packs_in(directory):
            continue
        flock = FileLock(os.path.join(directory, "lock"))
        try:
            flock.acquire()
        except Busy:
            continue
        try:
            count += recover_directory(files, layout, directory)
        finally:
            flock.release()
    return count
