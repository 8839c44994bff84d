"""What S3 and the line answer, told in the words of the one tree of errors.

Owns: the table from an S3 error code or HTTP status to our error, with a hint for the operator.
Must not: send, retry, log.
"""

from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    InvalidRegionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from appliance.foundation.errors import (
    ChecksumRejected,
    CloudError,
    CloudMisconfigured,
    CloudRefused,
    CloudUnavailable,
    ObjectExists,
    ObjectMissing,
)

# The IAM action that each request needs, so that a refusal names it.
PERMISSIONS = {
    "PutObject": "s3:PutObject",
    "PutObject+lock": "s3:PutObject and s3:PutObjectRetention",
    "CreateMultipartUpload": "s3:PutObject",
    "CreateMultipartUpload+lock": "s3:PutObject and s3:PutObjectRetention",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListParts": "s3:ListMultipartUploadParts",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "GetObject": "s3:GetObject",
    "GetObject+version": "s3:GetObjectVersion",
    # Without s3:ListBucket a missing key answers 403 as well.
    "HeadObject": "s3:GetObject, s3:GetObjectRetention and s3:ListBucket",
    "HeadObject+version": "s3:GetObjectVersion, s3:GetObjectRetention and s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListObjectsV2": "s3:ListBucket",
    "PutObjectRetention": "s3:PutObjectRetention",
    "DeleteObject": "s3:DeleteObjectVersion",
    "GetBucketVersioning": "s3:GetBucketVersioning",
    "GetObjectLockConfiguration": "s3:GetBucketObjectLockConfiguration",
}

_MISCONFIGURED = {
    "NoSuchBucket": "The bucket is gone or its name is wrong. It is never created here: check "
    "cloud.bucket, cloud.endpoint_url and the account",
    "PermanentRedirect": "The bucket is in another region. Redirects are not followed, so that "
    "no data leaves the configured region: check cloud.region",
    "TemporaryRedirect": "The store redirects to another endpoint, which is not followed: check "
    "cloud.region and cloud.endpoint_url",
    "AuthorizationHeaderMalformed": "The bucket's region is not the configured one: "
    "check cloud.region",
    "IllegalLocationConstraintException": "The bucket is in another region: check cloud.region",
    "InvalidBucketName": "The bucket's name is not valid: check cloud.bucket",
    "ObjectLockConfigurationNotFoundError": "The bucket has no Object Lock. It is switched on by "
    "the bucket's owner, with versioning",
    "NotImplemented": "The store does not know this request: it can't serve this archive",
    "MethodNotAllowed": "The store does not allow this request on the bucket",
}
_REFUSED = {
    "AccessDenied": "The credentials lack {permission}",
    "AllAccessDisabled": "The account's access is switched off",
    "AccountProblem": "The cloud account has a problem, such as an unpaid bill",
    "InvalidAccessKeyId": "The access key is not known: it was revoked, or belongs elsewhere",
    "SignatureDoesNotMatch": "The secret key does not fit the access key",
    "ExpiredToken": "The session credentials have expired and were not renewed",
    "InvalidToken": "The session token is not valid",
    "TokenRefreshRequired": "The session credentials have to be renewed",
    "RequestTimeTooSkewed": "This box's clock is more than 15 minutes off: check NTP. Nothing is "
    "lost, uploads wait",
    "RequestExpired": "This box's clock is off: check NTP",
    "InvalidObjectState": "The object was moved to an archive storage class by a lifecycle rule: "
    "restore it there (RestoreObject), and take the rule off this bucket",
    "KMS.DisabledException": "The bucket's KMS key is disabled",
}
_MISSING = {"NoSuchKey", "NoSuchVersion", "NoSuchUpload"}
_EXISTS = {"PreconditionFailed", "BucketAlreadyExists", "BucketAlreadyOwnedByYou"}
_CHECKSUM = {
    "BadDigest",
    "InvalidDigest",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "ContentChecksumMismatch",
}
_UNAVAILABLE = {
    "ConditionalRequestConflict": "Another request for this key was under way; it is tried again",
    "OperationAborted": "Another request for this key was under way; it is tried again",
    "SlowDown": "The store asks to slow down; it is tried again, later",
    "Throttling": "The store asks to slow down; it is tried again, later",
    "ThrottlingException": "The store asks to slow down; it is tried again, later",
    "TooManyRequests": "The store asks to slow down; it is tried again, later",
    "RequestLimitExceeded": "The store asks to slow down; it is tried again, later",
    "RequestTimeout": "The store saw no bytes for too long: the line is bad or very slow",
    "IncompleteBody": "The line broke in the middle of the body",
    "InternalError": "The store had an internal error; it is tried again",
    "ServiceUnavailable": "The store is overloaded or down; it is tried again",
}
PORTAL_HINT = (
    "Something between here and the store answered in its place, such as a captive portal or a "
    "proxy: check the WAN line and the proxy"
)
_BY_STATUS = {301: "PermanentRedirect", 307: "TemporaryRedirect", 308: "PermanentRedirect"}


def answered_by_store(headers: Any) -> bool:
    """Tell whether an answer bears the mark of every S3 server, its request id."""
    return "x-amz-request-id" in headers or "x-amz-id-2" in headers


def translate(operation: str, key: str, failure: Exception, qualifier: str = "") -> CloudError:
    """Return the error that `failure` of an S3 operation means; to be raised `from` it.

    `operation` is S3's name; `qualifier` (`lock`, `version`) tells which permission it needs.
    """
    if isinstance(failure, ClientError):
        return _of_answer(operation, key, failure, qualifier)
    if isinstance(failure, NoCredentialsError | PartialCredentialsError):
        return CloudRefused(
            operation,
            key,
            str(failure),
            "Give the node credentials: the environment, a profile, an instance role, or the "
            "systemd credential azekura-s3",
        )
    if isinstance(failure, NoRegionError | InvalidRegionError):
        return CloudMisconfigured(operation, key, str(failure), "Check cloud.region")
    if isinstance(failure, SSLError):
        return CloudUnavailable(
            operation,
            key,
            str(failure),
            "The server's certificate does not prove its name: check the clock, the CA bundle, "
            "and whether a proxy opens TLS",
        )
    if isinstance(failure, ResponseParserError):
        return CloudUnavailable(operation, key, "the answer is not S3's", PORTAL_HINT)
    if isinstance(failure, BotoConnectionError | HTTPClientError | IncompleteReadError):
        return CloudUnavailable(
            operation, key, str(failure), "Check the WAN line, DNS and the endpoint"
        )
    if isinstance(failure, BotoCoreError):
        return CloudMisconfigured(operation, key, str(failure), "Check the [cloud] table")
    return CloudUnavailable(operation, key, f"{type(failure).__name__}: {failure}")


def _of_answer(operation: str, key: str, failure: ClientError, qualifier: str) -> CloudError:
    error = failure.response.get("Error", {})
    metadata = failure.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    headers = metadata.get("HTTPHeaders", {})
    code = str(error.get("Code", "") or status)
    cause = f"{status} {code}: {error.get('Message', '')}".rstrip(": ")
    if not answered_by_store(headers) and status != 0 and status < 500:
        return CloudUnavailable(operation, key, cause, PORTAL_HINT)
    if code.isdigit():
        code = _BY_STATUS.get(status, code)
    if code == "AuthorizationHeaderMalformed" and "Region" not in error:
        code = "SignatureDoesNotMatch"
    if status == 404 and operation in ("HeadBucket", "ListObjectVersions", "ListObjectsV2"):
        code = "NoSuchBucket"
        cause = f"{status} {code}"
    if code in _EXISTS or status == 412:
        return ObjectExists(operation, key, cause)
    if code in _MISSING:
        return ObjectMissing(operation, key, cause)
    if code in _CHECKSUM:
        return ChecksumRejected(
            operation, key, cause, "The bytes changed on the way or on the disk; they are reread"
        )
    if code in _UNAVAILABLE:
        return CloudUnavailable(operation, key, cause, _UNAVAILABLE[code])
    if code in _MISCONFIGURED:
        return CloudMisconfigured(operation, key, cause, _region_hint(code, headers, error))
    if code in _REFUSED:
        return CloudRefused(operation, key, cause, _refusal(code, operation, qualifier))
    return _of_status(operation, key, status, cause, qualifier)


def _of_status(operation: str, key: str, status: int, cause: str, qualifier: str) -> CloudError:
    if status >= 500 or status in (0, 408, 409, 425, 429):
        return CloudUnavailable(operation, key, cause, "The store is tried again, later")
    if status in (401, 403):
        return CloudRefused(operation, key, cause, _refusal("AccessDenied", operation, qualifier))
    if status in (404, 405):
        return ObjectMissing(operation, key, cause)
    if 300 <= status < 400:
        return CloudMisconfigured(operation, key, cause, _MISCONFIGURED["TemporaryRedirect"])
    return CloudMisconfigured(operation, key, cause, "The store does not accept the request")


def _refusal(code: str, operation: str, qualifier: str) -> str:
    permission = PERMISSIONS.get(f"{operation}+{qualifier}") or PERMISSIONS.get(
        operation, f"the right to {operation}"
    )
    return _REFUSED[code].format(permission=permission)


def _region_hint(code: str, headers: Any, error: Any) -> str:
    hint = _MISCONFIGURED[code]
    region = headers.get("x-amz-bucket-region") or error.get("Region")
    return f"{hint} (the bucket says {region})" if region else hint
