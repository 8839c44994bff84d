"""What S3 and the line answer, told in the words of the one tree of errors.

Owns: the table from an S3 error code or HTTP status to our error, with a hint for the operator.
Must not: send, retry, log.
"""

from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
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
    ObjectArchived,
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
    # Without the rights to read lock and hold their headers are left out of the answer.
    "HeadObject": "s3:GetObject, s3:GetObjectRetention, s3:GetObjectLegalHold and s3:ListBucket",
    "HeadObject+version": "s3:GetObjectVersion, s3:GetObjectRetention, s3:GetObjectLegalHold "
    "and s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListObjectsV2": "s3:ListBucket",
    "PutObjectRetention": "s3:PutObjectRetention",
    "PutObjectLegalHold": "s3:PutObjectLegalHold",
    "DeleteObject": "s3:DeleteObjectVersion",
    "RestoreObject": "s3:RestoreObject",
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
    "InvalidObjectState": "The object was moved to an archive storage class by a lifecycle rule. A "
    "restore is asked for and takes hours; take the rule off this bucket",
    "KMS.DisabledException": "The bucket's KMS key is disabled",
}
_MISSING = {"NoSuchKey", "NoSuchVersion", "NoSuchUpload"}
_EXISTS = {"PreconditionFailed", "BucketAlreadyExists", "BucketAlreadyOwnedByYou"}
_REREAD = "The bytes changed on the way or on the disk; they are reread"
_CHECKSUM = dict.fromkeys(
    (
        "BadDigest",
        "InvalidDigest",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
        "ContentChecksumMismatch",
        # A part that lies there from before a restart is not the one that was named.
        "InvalidPart",
        "InvalidPartOrder",
    ),
    _REREAD,
)
_SLOW_DOWN = {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}
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
_BY_STATUS = {
    301: "PermanentRedirect",
    307: "TemporaryRedirect",
    308: "PermanentRedirect",
    412: "PreconditionFailed",
}
_OF_BUCKET = {"HeadBucket", "ListObjectVersions", "ListObjectsV2", "ListMultipartUploads"}
_KINDS: dict[str, type[CloudError]] = {
    **dict.fromkeys(_MISCONFIGURED, CloudMisconfigured),
    **dict.fromkeys(_REFUSED, CloudRefused),
    "InvalidObjectState": ObjectArchived,
    **dict.fromkeys(_MISSING, ObjectMissing),
    **dict.fromkeys(_EXISTS, ObjectExists),
    **dict.fromkeys(_CHECKSUM, ChecksumRejected),
    **dict.fromkeys(_UNAVAILABLE, CloudUnavailable),
}
# What the line and botocore raise; the first that fits.
_BY_TYPE: tuple[tuple[Any, type[CloudError], str], ...] = (
    (
        (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError),
        CloudRefused,
        (
            "Give the node credentials: the environment, a profile, an instance role, or the "
            "systemd credential azekura-s3"
        ),
    ),
    ((NoRegionError, InvalidRegionError), CloudMisconfigured, "Check cloud.region"),
    (
        SSLError,
        CloudUnavailable,
        (
            "The server's certificate does not prove its name: check the clock, the CA bundle, and "
            "whether a proxy opens TLS"
        ),
    ),
    (
        (BotoConnectionError, HTTPClientError, IncompleteReadError),
        CloudUnavailable,
        "Check the WAN line, DNS and the endpoint",
    ),
    (BotoCoreError, CloudMisconfigured, "Check the [cloud] table"),
)


def answered_by_store(headers: Any) -> bool:
    """Tell whether an answer bears the mark of every S3 server, its request id."""
    return "x-amz-request-id" in headers or "x-amz-id-2" in headers


def asks_to_slow_down(failure: Exception) -> bool:
    """Tell whether the store, and not the line, wants less."""
    if not isinstance(failure, ClientError):
        return False
    status = failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = failure.response.get("Error", {}).get("Code", "")
    return status == 429 or code in _SLOW_DOWN


def translate(operation: str, key: str, failure: Exception, qualifier: str = "") -> CloudError:
    """Return the error that `failure` of an S3 operation means; to be raised `from` it.

    `operation` is S3's name; `qualifier` (`lock`, `version`) tells which permission it needs.
    """
    if isinstance(failure, ClientError):
        return _of_answer(operation, key, failure, qualifier)
    if isinstance(failure, ResponseParserError):
        return CloudUnavailable(operation, key, "the answer is not S3's", PORTAL_HINT)
    for kinds, kind, hint in _BY_TYPE:
        if isinstance(failure, kinds):
            return kind(operation, key, str(failure), hint)
    return CloudUnavailable(operation, key, f"{type(failure).__name__}: {failure}")


def _of_answer(operation: str, key: str, failure: ClientError, qualifier: str) -> CloudError:
    error = failure.response.get("Error", {})
    metadata = failure.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    headers = metadata.get("HTTPHeaders", {})
    code = str(error.get("Code", "") or status)
    if code.isdigit():  # an answer without a body, to a HEAD
        code = _code_of_status(operation, status)
    cause = f"{status} {code}: {error.get('Message', '')}".strip(": ")
    if not answered_by_store(headers) and status != 0 and status < 500:
        return CloudUnavailable(operation, key, cause, PORTAL_HINT)
    if code == "AuthorizationHeaderMalformed" and "Region" not in error:
        code = "SignatureDoesNotMatch"
    kind = _KINDS.get(code)
    if kind is None:
        return _of_status(operation, key, status, cause, qualifier)
    return kind(operation, key, cause, _hint(code, operation, qualifier, headers, error))


def _code_of_status(operation: str, status: int) -> str:
    if status == 404 and operation in _OF_BUCKET:
        return "NoSuchBucket"
    return _BY_STATUS.get(status, "")


def _hint(code: str, operation: str, qualifier: str, headers: Any, error: Any) -> str:
    if code in _REFUSED:
        return _refusal(code, operation, qualifier)
    if code in _MISCONFIGURED:
        region = headers.get("x-amz-bucket-region") or error.get("Region")
        return _MISCONFIGURED[code] + (f" (the bucket says {region})" if region else "")
    return _UNAVAILABLE.get(code) or _CHECKSUM.get(code, "")


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
