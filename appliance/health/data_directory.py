"""Whether the data directory can be written by whoever runs this."""

import os
import stat

from appliance.foundation.errors import AzekuraError
from appliance.foundation.files import FileSystem
from appliance.health.check import Findings, failed, ok, warning

CONDITION = "data_directory"
_PROBE = ".doctor"


def check_data_directory(files: FileSystem, data_dir: str) -> Findings:
    """Create, flush and remove a small file there."""
    if not os.path.isdir(data_dir):
        return [
            warning(
                CONDITION,
                f"{data_dir} is not there",
                "The first start makes it, if the daemons' user may write the folder above it",
            )
        ]
    path = os.path.join(data_dir, f"{_PROBE}-{os.getpid()}")
    try:
        files.write_atomic(path, b"azekura\n")
        files.unlink(path)
    except AzekuraError as cause:
        return [failed(CONDITION, cause)]
    found = os.stat(data_dir)
    if found.st_uid != os.geteuid() and not _is_shared(found):
        return [
            warning(
                CONDITION,
                f"{data_dir} belongs to user {found.st_uid}, this is user {os.geteuid()}",
                "Run the daemons and the commands as the owner, or they lock each other out",
            )
        ]
    return [ok(CONDITION, f"{data_dir} is writable")]


def _is_shared(found: os.stat_result) -> bool:
    """Whether a group to which this user belongs shares it, with all that is made in it."""
    shared = stat.S_ISGID | stat.S_IRWXG
    return found.st_mode & shared == shared and found.st_gid in {os.getegid(), *os.getgroups()}
