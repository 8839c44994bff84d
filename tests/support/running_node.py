"""A node that a whole test module shares."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.remote.embedded import EmbeddedS3
from tests.support.node import Node


@contextlib.contextmanager
def running_node(
    folder: Path, server: EmbeddedS3, bucket: str, *daemons: str, **options: Any
) -> Iterator[Node]:
    """Start a node in a folder of its own; end it, whatever happens. Options: see Node."""
    node = Node(
        folder, server, bucket, f"{folder.parent.name}-{folder.name}-{os.getpid()}/", **options
    )
    try:
        yield node.start(*daemons)
    finally:
        node.stop()
