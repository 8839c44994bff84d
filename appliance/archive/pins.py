"""Studies that stay cached whatever the watermarks say."""

import hashlib
import os

import msgspec

from appliance.foundation.files import FileSystem


class Pins:
    """Studies that stay cached, as files in `state/pins/`, so that they outlive the index."""

    def __init__(self, files: FileSystem, directory: str) -> None:
        self._files = files
        self._directory = directory

    def _path(self, study_instance_uid: str) -> str:

        return os.path.join(
            self._directory, hashlib.sha256(study_instance_uid.encode()).hexdigest() + ".json"
        )

    def pin(self, study_instance_uid: str) -> None:
        """Keep a study cached."""
        self._files.write_atomic(
            self._path(study_instance_uid), msgspec.json.encode({"study": study_instance_uid})
        )

    def unpin(self, study_instance_uid: str) -> None:
        """Let a study be evicted again."""
        self._files.unlink(self._path(study_instance_uid))

    def pinned(self, study_instance_uid: str) -> bool:
        """Tell whether a study stays cached."""
        return os.path.exists(self._path(study_instance_uid))
