"""The boto3 client and what it is made from.

Owns: settings, where credentials come from, every option of botocore that matters here. Must not:
translate errors, retry, or follow a redirect.

Invariants:
- One request of ours is one request on the wire: botocore's own retries are off.
- A bucket in another region is never followed: the region is pinned by the configuration, and
  patients' data don't leave it because an answer says so.
"""

import os
from dataclasses import dataclass
from typing import Any

import boto3.session
import botocore.session
from botocore.config import Config
from botocore.exceptions import ProfileNotFound

from appliance.config.model import Cloud
from appliance.config.model import Replica as ReplicaTable
from appliance.foundation.errors import CloudMisconfigured, CloudRefused
from appliance.remote.s3_connection import LineTimeouts, install
from appliance.remote.throttle import Throttle

CONNECT_TIMEOUT_S = 10.0
CREDENTIAL_NAME = "azekura-s3"
DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key. Never logged: `repr` hides the secret."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.access_key_id})"


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Which bucket, and how to get in.

    `endpoint_url` "" means AWS in `region`. Without `credentials` they come from
    `credentials_file` (an AWS shared-credentials file, as a systemd credential carries it), else
    from the usual AWS places: environment, profile, instance role. With `profile` they come from
    that profile of those files, and so does what else it says (a CA bundle, a proxy).
    """

    bucket: str
    region: str = ""
    endpoint_url: str = ""
    prefix: str = ""
    credentials: Credentials | None = None
    credentials_file: str = ""
    profile: str = ""
    pool_connections_max: int = 32

    @classmethod
    def of(cls, cloud: Cloud) -> "S3Settings":
        """Return the settings that the configuration's `[cloud]` table means."""
        return cls(
            bucket=cloud.bucket,
            region=cloud.region,
            endpoint_url=cloud.endpoint_url,
            prefix=cloud.prefix,
            credentials_file=systemd_credentials_file(),
        )

    @classmethod
    def of_replica(cls, replica: ReplicaTable) -> "S3Settings":
        """Return the settings that a `[[cloud.replicas]]` table means."""
        return cls(
            bucket=replica.bucket,
            region=replica.region,
            endpoint_url=replica.endpoint_url,
            prefix=replica.prefix,
            credentials_file=systemd_credentials_file(),
            profile=replica.profile,
        )


def systemd_credentials_file() -> str:
    """Return the path of the systemd credential `azekura-s3`, or "" where there is none."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = os.path.join(directory, CREDENTIAL_NAME) if directory else ""
    return path if path and os.path.isfile(path) else ""


def make_client(
    settings: S3Settings, throttle: Throttle, timeouts: LineTimeouts
) -> tuple[Any, Any]:
    """Return a boto3 S3 client whose sockets send through `throttle`, and its credentials.

    The credentials are botocore's own, which renew themselves; None where none were found.

    Raises CloudMisconfigured for a region that is needed and missing, CloudRefused for a
    credentials file that can't be read.
    """
    if not settings.endpoint_url and not settings.region:
        raise CloudMisconfigured(
            "connect to the bucket", settings.bucket, "no region", "Set cloud.region"
        )
    try:
        session = _session(settings)
        credentials = session.get_credentials()
    except ProfileNotFound as cause:
        raise CloudRefused(
            "read the bucket's credentials", settings.profile, "no such profile",
            "Write it into the AWS credentials file or the systemd credential azekura-s3",
        ) from cause  # fmt: skip
    custom = bool(settings.endpoint_url)
    config = Config(
        region_name=settings.region or DEFAULT_REGION,
        signature_version="s3v4",
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=timeouts.read_timeout_s(),
        max_pool_connections=settings.pool_connections_max,
        tcp_keepalive=True,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        parameter_validation=False,
        # The signed checksum header binds the body; over https it need not be hashed twice.
        s3={
            # "auto" would sign URLs for the global host, which redirects out of the region.
            "addressing_style": "path" if custom else "virtual",
            "payload_signing_enabled": False,
            "us_east_1_regional_endpoint": "regional",
        },
    )
    client = session.client(
        "s3",
        endpoint_url=settings.endpoint_url or None,
        config=config,
    )
    install(client, throttle, timeouts)
    return client, credentials


def _session(settings: S3Settings) -> Any:
    core = botocore.session.Session(profile=settings.profile or None)
    if settings.credentials is None and settings.credentials_file:
        if not os.access(settings.credentials_file, os.R_OK):
            raise CloudRefused(
                "read the bucket's credentials",
                settings.credentials_file,
                "the file is not readable",
                "Check the systemd credential or the file's owner",
            )
        core.set_config_variable("credentials_file", settings.credentials_file)
    elif settings.credentials is not None:
        core.set_credentials(
            settings.credentials.access_key_id,
            settings.credentials.secret_access_key,
            settings.credentials.session_token,
        )
    return boto3.session.Session(botocore_session=core)
