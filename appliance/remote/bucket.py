"""What is wrong with the bucket, as findings: it is looked at, never changed."""

from appliance.foundation.errors import CloudMisconfigured, ObjectMissing
from appliance.remote.s3_requests import S3Requests
from appliance.remote.store import BucketFinding, Lane


def inspect_bucket(requests: S3Requests) -> list[BucketFinding]:
    """Return what keeps the bucket from being an archive; CloudError when it can't be asked."""
    try:
        answer = requests.send("HeadBucket", "", Lane.URGENT)
    except CloudMisconfigured as error:
        # AWS answers a bucket elsewhere with a redirect, or 400 when the signature names a region.
        missing = "NoSuchBucket" in error.cause
        condition = "bucket_missing" if missing else "wrong_region"
        return [BucketFinding(condition, error.cause, error.hint)]  # type: ignore[arg-type]
    region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", "")
    findings = []
    if region and requests.region and region != requests.region:
        findings.append(
            BucketFinding(
                "wrong_region",
                f"the bucket is in {region}, configured is {requests.region}",
                "Set cloud.region to the bucket's, if data may lie there",
            )
        )
    status = requests.send("GetBucketVersioning", "", Lane.URGENT).get("Status", "")
    if status != "Enabled":
        findings.append(
            BucketFinding(
                "not_versioned",
                f"versioning is {status or 'off'}",
                "The bucket's owner switches versioning on; Object Lock needs it",
            )
        )
    if not _locks(requests):
        findings.append(
            BucketFinding(
                "no_object_lock",
                "the bucket has no Object Lock",
                "The bucket's owner switches Object Lock on; no default retention is needed",
            )
        )
    return findings


def _locks(requests: S3Requests) -> bool:
    try:
        answer = requests.send("GetObjectLockConfiguration", "", Lane.URGENT)
    except (CloudMisconfigured, ObjectMissing) as error:
        if "ObjectLockConfigurationNotFound" in error.cause or isinstance(error, ObjectMissing):
            return False
        raise
    return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")
