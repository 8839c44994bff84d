"""`azekura study`: list, show, and what people ask for a study."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import exit_codes, invocation

if TYPE_CHECKING:
    from appliance.daemons.parts import Parts

app = typer.Typer(
    help="List studies, show one, evict, recall, pin, reject or hold it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

LIST_MAX = 10_000
ANSWER_TIMEOUT_S = 300.0
_Study = Annotated[str, typer.Argument(metavar="UID", help="The Study Instance UID.")]


@app.command("list")
def list_studies(
    context: typer.Context,
    patient: Annotated[str, typer.Option("--patient", help="PatientID or name, * allowed.")] = "",
    accession: Annotated[str, typer.Option("--accession", help="Accession number.")] = "",
    date: Annotated[
        str, typer.Option("--date", help="Study date or range, 20240101-20240131.")
    ] = "",
    state: Annotated[str, typer.Option("--state", help="pending, cached, evicted or mixed.")] = "",
) -> None:
    """List studies, oldest first."""
    from appliance.archive.studies import list_rows

    call = invocation.of(context)
    with call.parts() as parts:
        rows = [
            row
            for row in list_rows(parts.index, patient, accession, date, LIST_MAX)
            if not state or row["state"] == state
        ]
    call.output.table(
        rows,
        ("study_date", "patient_id", "patient_name", "accession_number", "modalities",
         "instances", "state", "held", "study_instance_uid"),
    )  # fmt: skip


@app.command()
def damaged(context: typer.Context) -> None:
    """List instances whose only copy is damaged, with who sent them; exit code 1 if any.

    They leave the list when they have been sent again.
    """
    from appliance.archive.damaged import damaged_rows

    call = invocation.of(context)
    with call.parts(open_index=False) as parts:
        rows = damaged_rows(parts.layout)
    call.output.table(
        rows,
        ("calling_ae", "address", "received_at", "study_instance_uid", "series_instance_uid",
         "sop_instance_uid"),
    )  # fmt: skip
    raise typer.Exit(exit_codes.FAULT if rows else exit_codes.OK)


@app.command()
def show(
    context: typer.Context,
    study: Annotated[str, typer.Argument(metavar="UID|ACCESSION", help="Which study.")],
) -> None:
    """Show one study: for each instance where it came from, its hash, and how safe it is."""
    from appliance.archive.studies import show_study

    call = invocation.of(context)
    with call.parts() as parts:
        found = [show_study(parts.index, parts.layout, uid) for uid in _resolve(parts, study)]
    document: Any = found[0] if len(found) == 1 else found
    call.output.result(document, "\n\n".join(map(_study_text, found)))


def _resolve(parts: "Parts", study: str) -> list[str]:
    from appliance.archive.studies import resolve

    return resolve(parts.index, study)


def _study_text(found: dict[str, Any]) -> str:
    from appliance.foundation.units import format_size

    lines = [
        (
            f"{found['patient_name']} ({found['patient_id']}), {found['study_date']}, "
            f"accession {found['accession_number'] or 'none'}"
        ),
        (
            f"study {found['study_instance_uid']}: {len(found['instances'])} instances, "
            f"{found['state']}{', pinned' if found['pinned'] else ''}"
        ),
    ]
    hold = found["hold"]
    if hold is not None and hold["on"]:
        lines.append(f"held since {hold['at']} by {hold['by']}: {hold['reason']}")
    lines += [f"conflict: {each}" for each in found["conflicts"]]
    for each in found["instances"]:
        lines.append(
            f"  {each['sop_instance_uid']}  {format_size(each['length'])}  {each['state']}"
            f"{', hidden' if each['hidden'] else ''}, received {each['received_at']} "
            f"from {each['from']['calling_ae']}, locked until {each['locked_until'] or 'never'}"
        )
    return "\n".join(lines)


def _ask(context: typer.Context, kind: str, study: str, **more: Any) -> None:
    """Leave a request for the uplink, wait for its answer and print it."""
    import getpass

    from appliance.archive.requests import Request, RequestBox

    call = invocation.of(context)
    with call.parts() as parts:
        box = RequestBox(parts.files, parts.layout.requests)
        answers = []
        for uid in _resolve(parts, study):
            request = Request(kind=kind, study_instance_uid=uid, by=getpass.getuser(), **more)
            with call.output.progress(f"{kind} {uid}"):
                answers.append(box.wait(box.put(request), ANSWER_TIMEOUT_S))
    for answer in answers:
        hint = f". {answer.hint}" if answer.hint and not answer.done else ""
        call.output.result(
            {"done": answer.done, "sentence": answer.sentence, "hint": answer.hint},
            answer.sentence + hint,
        )
    if not all(answer.done for answer in answers):
        raise typer.Exit(exit_codes.FAULT)


@app.command()
def evict(context: typer.Context, study: _Study) -> None:
    """Remove the local copy of a verified study, after fresh proof from the bucket."""
    _ask(context, "evict", study)


@app.command()
def recall(context: typer.Context, study: _Study) -> None:
    """Bring an evicted study back into the cache."""
    _ask(context, "recall", study)


@app.command()
def pin(
    context: typer.Context,
    study: _Study,
    off: Annotated[bool, typer.Option("--off", help="Let it be evicted again.")] = False,
) -> None:
    """Keep a study cached whatever the watermarks say."""
    _ask(context, "unpin" if off else "pin", study)


_Named = Annotated[str, typer.Argument(metavar="UID|ACCESSION", help="Which study.")]
_Instances = Annotated[
    list[str] | None, typer.Option("--instance", help="Only this SOP Instance UID; may repeat.")
]


@app.command()
def reject(
    context: typer.Context,
    study: _Named,
    instance: _Instances = None,
    reason: Annotated[
        str, typer.Option("--reason", help="Why: a code as 113001, or a few words.")
    ] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Serve it again.")] = False,
) -> None:
    """Hide a study, or some of its instances, from every query and retrieve, on every node."""
    if undo:
        restore(context, study, instance)
        return
    if not reason.strip():
        raise typer.BadParameter("say why; the ledger keeps it", param_hint="--reason")
    _ask(context, "reject", study, sop_instance_uids=tuple(instance or ()), reason=reason.strip())


@app.command()
def restore(context: typer.Context, study: _Named, instance: _Instances = None) -> None:
    """Serve a rejected study, or some of its instances, again."""
    _ask(context, "restore", study, sop_instance_uids=tuple(instance or ()))


@app.command()
def hold(
    context: typer.Context,
    study: _Named,
    reason: Annotated[str, typer.Option("--reason", help="Which case; the ledger keeps it.")],
    off: Annotated[bool, typer.Option("--off", help="End the hold.")] = False,
) -> None:
    """Put a study under legal hold: it is never erased, whatever its term, on any node."""
    if not reason.strip():
        raise typer.BadParameter("say why; the ledger keeps it", param_hint="--reason")
    _ask(context, "release" if off else "hold", study, reason=reason.strip())
