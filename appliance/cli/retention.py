"""`azekura retention`: until when studies are kept, and whether the bucket keeps that promise."""

from typing import Annotated, Any

import typer

from appliance.cli import exit_codes, invocation

COLUMNS = (
    "kept_until", "held", "patient_id", "study_date", "accession_number", "modalities",
    "instances", "bytes", "study_instance_uid",
)  # fmt: skip


def parse_day(text: str, option: str) -> int:
    """Return the beginning of a day (UTC), 2031-04-01 or 20310401, in microseconds."""
    from datetime import UTC, datetime

    from appliance.foundation.clock import to_microseconds

    for form in ("%Y-%m-%d", "%Y%m%d"):
        try:
            return to_microseconds(datetime.strptime(text, form).replace(tzinfo=UTC))
        except ValueError:
            continue
    raise typer.BadParameter("is no day like 2031-04-01", param_hint=option)


def retention(
    context: typer.Context,
    before: Annotated[
        str, typer.Option("--before", metavar="DAY", help="Only terms that end before that day.")
    ] = "",
    cloud: Annotated[
        bool, typer.Option("--cloud", help="Ask the bucket for the lock of every pack too.")
    ] = False,
) -> None:
    """Report studies by the end of their term; exit code 1 when a lock in the bucket is shorter."""
    from appliance.archive.expiry import shortened, terms

    call = invocation.of(context)
    limit_us = parse_day(before, "--before") if before else None
    with call.parts() as parts:
        found = sorted(
            (
                term
                for term in terms(parts.index, call.config.cloud.longest_retention_s)
                if limit_us is None or term.until_us < limit_us
            ),
            key=lambda term: (term.until_us, term.study_instance_uid),
        )
        short: list[dict[str, Any]] = []
        if cloud:
            store = parts.store()
            packs = sum(len(term.packs) for term in found)
            with call.output.progress("packs", packs) as advance:
                short = [each for term in found for each in shortened(store, term, advance)]
    rows = [term.document() for term in found]
    if call.output.as_json:
        document = {"studies": rows, "checked": cloud, "shortened": short}
        call.output.result(document, "")
    else:
        call.output.table(rows, COLUMNS)
        behind = sum(term.behind for term in found)
        if behind:
            print(f"{behind} packs wait for their lock to be moved to their study's latest")
        for each in short:
            print(f"pack {each['pack']}: {each['finding']}")
        if cloud and not short:
            print("none is shortened: the bucket locks every pack at least as long as that")
    raise typer.Exit(exit_codes.FAULT if short else exit_codes.OK)
