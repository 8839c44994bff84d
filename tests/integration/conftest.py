"""What a session of integration tests has once: the object store, and a node for many modules."""

from collections.abc import Iterator

import pytest

from appliance.remote.embedded import EmbeddedS3
from tests.support.s3_fixture import s3_bucket, s3_server  # noqa: F401
from tests.support.shared_node import SharedNode, shared_node


@pytest.fixture(scope="session")
def shared(
    tmp_path_factory: pytest.TempPathFactory, s3_server: EmbeddedS3, s3_bucket: str
) -> Iterator[SharedNode]:
    """The shared node, running; ended with the session."""
    folder = tmp_path_factory.mktemp("shared")
    with shared_node(folder, s3_server, s3_bucket) as found:
        yield found
