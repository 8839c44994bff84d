"""`azekura verify`, `recover`, `rebuild-index`: looking, and getting back."""

import os
from typing import Annotated

import typer

from appliance.cli import exit_codes, invocation


def verify(
    context: typer.Context,
    cloud: Annotated[
        bool, typer.Option("--cloud", help="Ask the bucket for proof of every copy too.")
    ] = False,
    sample: Annotated[
        float,
        typer.Option(
            "--sample", metavar="PERCENT", min=0, max=100,
            help="With --cloud: the part of the copies to read back whole.",
        ),
    ] = 0.0,
) -> None:  # fmt: skip
    """Check every local pack against its hashes; exit code 1 when something is not as stored."""
    from appliance.archive.damage_report import reporter
    from appliance.archive.evict import Evictor
    from appliance.archive.pins import Pins
    from appliance.archive.requests import RequestBox
    from appliance.archive.verify import Verification

    call = invocation.of(context)
    with call.parts() as parts:
        store = parts.store()
        cache = call.config.cache
        evictor = Evictor(
            parts.files, parts.clock, parts.layout, parts.index, store, parts.space(),
            Pins(parts.files, parts.layout.pins), cache.high_water, cache.low_water,
        )  # fmt: skip
        report = reporter(RequestBox(parts.files, parts.layout.requests), "verify")
        run = Verification(parts.clock, parts.layout, parts.index, store, evictor, report)
        with parts.index.read() as view:
            total = view.counts().packs
        with call.output.progress("packs", total) as advance:
            result = run.run(cloud=cloud, sample=sample / 100, advance=advance)
    document = {
        "local_packs": result.local_packs,
        "cloud_packs": result.cloud_packs,
        "reread_packs": result.reread_packs,
        "findings": result.findings,
    }
    text = (
        f"{result.local_packs} packs on disk checked by hash, {result.cloud_packs} in the bucket "
        f"by proof, {result.reread_packs} read back: "
        + ("all as stored" if not result.findings else f"{len(result.findings)} findings")
    )
    call.output.result(document, "\n".join([text, *result.findings]))
    raise typer.Exit(exit_codes.FAULT if result.findings else exit_codes.OK)


def rebuild_index(context: typer.Context) -> None:
    """Build the index anew from ledger and packs, while the node goes on, and switch to it."""
    from appliance.archive.rebuild import rebuild

    call = invocation.of(context)
    with (
        call.parts(open_index=False) as parts,
        call.output.progress("instances") as advance,
    ):
        store = parts.reading_store()
        counts = rebuild(
            parts.layout, parts.index, call.config.node.name, parts.identities(), store, advance,
            parts.other_ledgers(store),
        )  # fmt: skip
        with parts.index.read() as view:
            held = view.counts()
    call.output.result(
        {
            "entries": counts.entries,
            "followed_entries": counts.followed,
            "packs": counts.packs,
            "instances": counts.instances,
            "index": {"studies": held.studies, "instances": held.instances},
        },
        f"the new index holds {held.studies} studies, {held.instances} instances; read were "
        f"{counts.entries} ledger entries, {counts.followed} of other nodes and, on this disk, "
        f"{counts.instances} instances in {counts.packs} packs",
    )


def recover(
    context: typer.Context,
    identity: Annotated[
        str, typer.Option("--identity", metavar="FILE", help="The recovery identity.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="Where the files go.")],
    bucket: Annotated[
        str, typer.Option("--bucket", help="The bucket; else the configured one.")
    ] = "",
    endpoint_url: Annotated[str, typer.Option("--endpoint-url", help="Empty for AWS.")] = "",
    region: Annotated[str, typer.Option("--region", help="The bucket's region.")] = "",
    prefix: Annotated[str, typer.Option("--prefix", help="What every key begins with.")] = "",
    study: Annotated[str, typer.Option("--study", metavar="UID", help="Only this study.")] = "",
) -> None:
    """Write DICOM files from bucket and key alone; nothing of the dead site is needed."""
    from appliance.archive.recover import Outcome, find_packs, recover_pack
    from appliance.foundation.clock import SystemClock
    from appliance.foundation.errors import NotFound
    from appliance.remote.s3 import S3Store
    from appliance.remote.s3_client import S3Settings, systemd_credentials_file
    from appliance.remote.throttle import ConstantRate, Throttle
    from appliance.seal.identity import load_identity

    call = invocation.of(context)
    clock = SystemClock()
    if not bucket:
        cloud = call.config.cloud
        bucket, endpoint_url, region, prefix = (
            cloud.bucket, cloud.endpoint_url, cloud.region, cloud.prefix,
        )  # fmt: skip
    settings = S3Settings(
        bucket=bucket, region=region, endpoint_url=endpoint_url, prefix=prefix,
        credentials_file=systemd_credentials_file(),
    )  # fmt: skip
    from datetime import UTC

    store = S3Store(settings, Throttle(ConstantRate(None), UTC, clock), clock)
    identities = load_identity(os.path.abspath(identity))
    os.makedirs(to, exist_ok=True)
    outcome = Outcome()
    found = [
        each
        for each in find_packs(store, identities, outcome)
        if not study or study in each.studies
    ]
    if not found:
        raise NotFound(
            "recover", study or bucket, "no pack of it in the bucket",
            "Check bucket, prefix and the UID",
        )  # fmt: skip
    with call.output.progress("recovering", sum(each.size_bytes for each in found)) as advance:
        for each in found:
            recover_pack(store, identities, each, to, outcome, advance)
    document = {
        "packs": outcome.packs,
        "instances": outcome.instances,
        "bytes": outcome.bytes,
        "findings": outcome.findings,
    }
    text = f"{outcome.instances} instances from {outcome.packs} packs are in {to}"
    call.output.result(document, "\n".join([text, *outcome.findings]))
    raise typer.Exit(exit_codes.FAULT if outcome.findings else exit_codes.OK)
