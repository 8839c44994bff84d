"""The embedded S3 server's fixtures, for every contract test."""

from tests.support.s3_fixture import (  # noqa: F401
    s3_bucket,
    s3_server,
    s3_settings,
    s3_store,
)
