"""The embedded S3 server for tests: one a session, a prefix of its own for each test.

A test module takes them with `from tests.support.s3_fixture import s3_bucket, s3_server,
s3_settings, s3_store  # noqa: F401` or from its conftest.
"""

import itertools
import os
from collections.abc import Iterator
from datetime import UTC

import pytest

from appliance.foundation.clock import SystemClock
from appliance.foundation.files import FileSystem
from appliance.remote.embedded import EmbeddedS3
from appliance.remote.s3 import S3Store
from appliance.remote.s3_client import S3Settings
from appliance.remote.throttle import ConstantRate, Throttle

BUCKET = "archive"
_numbers = itertools.count(1)


def unlimited() -> Throttle:
    """Return a throttle that grants everything."""
    return Throttle(ConstantRate(None), UTC, SystemClock())


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedS3]:
    """A running SeaweedFS, ended with the session."""
    with EmbeddedS3(str(tmp_path_factory.mktemp("s3")), FileSystem()) as server:
        yield server


@pytest.fixture(scope="session")
def s3_bucket(s3_server: EmbeddedS3) -> str:
    """One bucket with versioning and Object Lock for the session."""
    s3_server.create_bucket(BUCKET)
    return BUCKET


@pytest.fixture
def s3_settings(s3_server: EmbeddedS3, s3_bucket: str) -> S3Settings:
    """Settings of that bucket under a prefix of the test's own: no test sees another's keys."""
    return s3_server.settings(s3_bucket, prefix=f"site-{os.getpid()}-{next(_numbers)}/")


@pytest.fixture
def s3_store(s3_settings: S3Settings) -> S3Store:
    """A store on that bucket, unlimited."""
    return S3Store(s3_settings, unlimited(), SystemClock())
