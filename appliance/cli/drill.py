"""`azekura drill`: a sample of studies restored from bucket and key alone, and compared."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import exit_codes, invocation

if TYPE_CHECKING:
    from appliance.archive.drill import DrillResult

RECORDED_WITHIN_S = 60.0


def drill(
    context: typer.Context,
    studies: Annotated[
        int | None,
        typer.Option("--studies", metavar="N", min=1, max=1000, help="How many; else as set up."),
    ] = None,
    identity: Annotated[
        str,
        typer.Option(
            "--identity", metavar="FILE",
            help="The identity that opens the packs, like the recovery identity typed in from its "
            "sheet; else the node's own.",
        ),
    ] = "",
) -> None:  # fmt: skip
    """Restore a sample of studies from bucket and key alone, and compare it; exit code 1 if wrong.

    The result is written into the ledger, by the uplink.
    """
    from appliance.archive.drill_keeper import DrillHall, leave, node_label
    from appliance.archive.requests import RequestBox
    from appliance.foundation.errors import Busy
    from appliance.seal.identity import load_identity

    call = invocation.of(context)
    count = studies or call.config.drill.studies
    with call.parts() as parts:
        identities = (
            parts.identities() if not identity else load_identity(os.path.abspath(identity))
        )
        if identity:
            label = f"given {identities[0].recipient}"
            if identities[0].recipient in call.config.keys.recovery:
                label = f"recovery {identities[0].recipient}"
        else:
            label = node_label(identities)
        hall = DrillHall(
            parts.files, parts.clock, call.config, parts.layout, parts.index, parts.store(),
            parts.condition,
        )  # fmt: skip
        with call.output.progress("studies", count) as advance:
            result = hall.hold(identities, label, count, advance=advance)
        requests = RequestBox(parts.files, parts.layout.requests)
        request_id = leave(requests, result)
        try:
            answer = requests.wait(request_id, RECORDED_WITHIN_S)
            recorded, said = answer.done, answer.sentence
        except Busy:
            recorded, said = False, "the uplink writes the result into the ledger when it runs"
    call.output.result(_document(result, recorded=recorded), _text(result, said))
    raise typer.Exit(exit_codes.FAULT if result.all_findings else exit_codes.OK)


def _document(result: "DrillResult", *, recorded: bool) -> dict[str, Any]:
    import msgspec

    return {
        **msgspec.to_builtins(result),
        "instances": result.instances,
        "matched": result.matched,
        "findings": result.all_findings,
        "in_ledger": recorded,
    }


def _text(result: "DrillResult", said: str) -> str:
    from appliance.foundation.units import format_size

    whose, _, recipient = result.identity.partition(" ")
    own = "; it proves the bucket, not the sheet in the safe" if whose == "node" else ""
    lines = [
        f"opened by the identity of {recipient} ({whose}{own})",
        f"{'STUDY':<64}  PACKS  INSTANCES  MATCHED  ANSWERS  {'BYTES':>10}  FIRST S  WHOLE S",
    ]
    for each in result.studies:
        first = "" if each.first_instance_s is None else f"{each.first_instance_s:.2f}"
        lines.append(
            f"{each.study_instance_uid:<64}  {each.packs:>5}  {each.instances:>9}  "
            f"{each.matched:>7}  {each.answers:>7}  {format_size(each.bytes):>10}  {first:>7}  "
            f"{each.took_s:>7.2f}"
        )
    lines.append(
        f"{result.matched} of {result.instances} instances of {len(result.studies)} studies, of "
        f"{result.known_studies} in the ledgers, came back as they were"
    )
    lines.append(
        f"ledgers read in {result.ledger_s:.2f} s, first instance after "
        f"{result.first_instance_s:.2f} s, whole in {result.took_s:.2f} s"
    )
    if result.skipped:
        lines.append(f"{result.skipped} studies are in change: their answers were not compared")
    lines += [f"finding   {each}" for each in result.all_findings]
    return "\n".join([*lines, said])
