"""`azekura expire`: what need not be kept any longer, and erasing it, in two steps.

The node's own credential can delete nothing. `run` takes the administrator's from the environment
or asks for it, and keeps it nowhere.
"""

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import exit_codes, invocation
from appliance.cli.invocation import Invocation
from appliance.cli.retention import COLUMNS, parse_day

if TYPE_CHECKING:
    from appliance.archive.disposal_plan import PlanFile
    from appliance.archive.erase import Erasure
    from appliance.archive.requests import Answer
    from appliance.daemons.parts import Parts
    from appliance.remote.s3_client import Credentials

app = typer.Typer(
    help="List studies whose term is over, plan their erasure, carry a plan out.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SETTLED_TIMEOUT_S = 600.0
_NO_LEDGER = frozenset({"ledger", "bucket"})
"""Conditions of the uplink under which it could not write down what was erased."""
KEY_ID = "AZEKURA_ADMIN_ACCESS_KEY_ID"
SECRET = "AZEKURA_ADMIN_SECRET_ACCESS_KEY"  # noqa: S105 - the name of a variable
TOKEN = "AZEKURA_ADMIN_SESSION_TOKEN"  # noqa: S105 - the name of a variable


@app.command("list")
def list_expired(
    context: typer.Context,
    before: Annotated[
        str,
        typer.Option("--before", metavar="DAY", help="As of that day; now if it is not given."),
    ] = "",
) -> None:
    """List studies whose every pack's term is over and that nobody holds."""
    from appliance.archive.expiry import terms
    from appliance.foundation.clock import to_microseconds
    from appliance.foundation.units import format_size

    call = invocation.of(context)
    with call.parts() as parts:
        at_us = parse_day(before, "--before") if before else to_microseconds(parts.clock.now())
        found = [
            term
            for term in terms(parts.index, call.config.cloud.longest_retention_s)
            if term.expired(at_us)
        ]
    found.sort(key=lambda term: (term.until_us, term.study_instance_uid))
    call.output.table([term.document() for term in found], COLUMNS)
    if not call.output.as_json:
        size = format_size(sum(term.bytes for term in found))
        print(f"{len(found)} studies, {sum(term.instances for term in found)} instances, {size}")


@app.command()
def plan(
    context: typer.Context,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Where the plan goes.")],
    study: Annotated[
        list[str] | None, typer.Argument(metavar="[UID|ACCESSION]...", help="Which studies.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that have expired.")] = False,
) -> None:
    """Write down which versions are to be erased; nothing is. Good for seven days."""
    import getpass

    from appliance.archive.disposal_plan import FORMAT, STUDIES_MAX, Plan, planned, write_plan
    from appliance.foundation.clock import isoformat, to_microseconds
    from appliance.foundation.errors import NotFound

    if bool(study) == everything:
        raise typer.BadParameter("name studies, or say --all")
    call = invocation.of(context)
    cloud = call.config.cloud
    with call.parts() as parts:
        now = parts.store().server_time()
        found = _chosen(call, parts, study, to_microseconds(now))
        if not found:
            raise NotFound("plan", "expired studies", "there are none", "azekura retention")
        made = Plan(
            FORMAT, call.config.node.name, cloud.endpoint_url, cloud.bucket, cloud.prefix,
            isoformat(now), getpass.getuser(), [planned(term) for term in found[:STUDIES_MAX]],
        )  # fmt: skip
        write_plan(os.path.abspath(out), made, parts.files)
    document = _summary(made.sha256(), made)
    call.output.result(
        document,
        f"{out}: {document['studies']} studies, {document['packs']} packs, "
        f"{document['instances']} instances. To erase them, within seven days:\n"
        f"azekura expire run {out}   (hash {made.sha256()})",
    )


def _summary(sha256: str, made: Any) -> dict[str, Any]:
    return {
        "sha256": sha256,
        "made_at": made.made_at,
        "studies": len(made.studies),
        "packs": len(made.packs),
        "instances": sum(study.instances for study in made.studies),
        "bytes": sum(pack.size_bytes for pack in made.packs),
    }


def _chosen(call: Invocation, parts: "Parts", study: list[str] | None, at_us: int) -> list[Any]:
    """Return the terms of what is to go: all that expired, or the named ones, each expired."""
    from appliance.archive.expiry import term_of, terms
    from appliance.archive.studies import resolve
    from appliance.foundation.clock import from_microseconds, isoformat
    from appliance.foundation.errors import Refused

    retention_s = call.config.cloud.longest_retention_s
    if not study:
        return [term for term in terms(parts.index, retention_s) if term.expired(at_us)]
    found = []
    for uid in dict.fromkeys(uid for name in study for uid in resolve(parts.index, name)):
        with parts.index.read() as view:
            term = term_of(view, uid, retention_s)
        if not term.expired(at_us):
            why = "it is held" if term.held else "it is pending" if term.pending else (
                f"it is kept until {isoformat(from_microseconds(term.until_us))}"
            )  # fmt: skip
            raise Refused("plan", uid, why, "azekura expire list")
        found.append(term)
    return found


@app.command()
def run(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The plan.")],
    confirm: Annotated[
        str, typer.Option("--confirm", metavar="HASH", help="The plan's hash, instead of asking.")
    ] = "",
    certificate: Annotated[
        str,
        typer.Option("--certificate", metavar="FILE", help="Else it goes beside the plan."),
    ] = "",
) -> None:
    """Erase what a plan names, with the administrator's credential, and certify it.

    The credential comes from AZEKURA_ADMIN_ACCESS_KEY_ID, …_SECRET_ACCESS_KEY and
    …_SESSION_TOKEN, or is asked for. It is not kept. azekura uplink must run: it writes the ledger.
    """
    from appliance.archive.disposal_plan import Intents, read_plan
    from appliance.archive.erase import Erasure
    from appliance.foundation.files import FileLock

    call = invocation.of(context)
    read = read_plan(file)
    _check_place(call, read)
    credentials = _credentials(asking=not call.output.as_json and sys.stdin.isatty())
    with call.parts() as parts:
        _need_uplink(parts)
        intents = Intents(parts.files, parts.layout.erasures)
        erasure = Erasure(
            parts.clock, parts.index, parts.store(credentials), intents,
            call.config.cloud.longest_retention_s,
        )  # fmt: skip
        alone = FileLock(intents.lock_path)
        alone.acquire()
        try:
            with call.output.progress("proving", len(read.plan.packs)) as advance:
                erasure.prove(read.plan, advance)
            _confirm(call, read, confirm)
            failure, answer = _erase(call, parts, erasure, read, credentials.access_key_id)
        finally:
            alone.release()
        path = certificate or f"{file}.certificate.json"
        with open(answer.details["certificate"], "rb") as source:
            content = source.read()
        parts.files.write_atomic(os.path.abspath(path), content, 0o600)
    complete = _tell(call, content, path)
    if failure is not None:
        raise failure
    raise typer.Exit(exit_codes.OK if complete else exit_codes.FAULT)


def _erase(
    call: Invocation, parts: "Parts", erasure: "Erasure", read: "PlanFile", access_key_id: str
) -> tuple[Exception | None, "Answer"]:
    """Return what ended the run early, if anything did, and the uplink's answer."""
    import getpass

    from appliance.archive.requests import Request, RequestBox
    from appliance.foundation.errors import AzekuraError, Damaged

    failure: Exception | None = None
    with call.output.progress("erasing", len(read.plan.packs)) as advance:
        try:
            erasure.run(read, getpass.getuser(), access_key_id, advance)
        except AzekuraError as error:
            failure = error
    box = RequestBox(parts.files, parts.layout.requests)
    answer = box.wait(
        box.put(Request(kind="erased", details={"plan": read.sha256})), SETTLED_TIMEOUT_S
    )
    if not answer.done:
        raise failure or Damaged("settle the erasure", read.sha256[:8], answer.sentence)
    return failure, answer


def _tell(call: Invocation, content: bytes, path: str) -> bool:
    """Print what was erased; return whether nothing of the plan was left."""
    import json

    from appliance.archive.disposal import read_certificate

    found, _ = read_certificate(content)
    erased = [pack for study in found.studies for pack in study.erased]
    left = sum(len(study.left) for study in found.studies)
    call.output.result(
        json.loads(content.partition(b"\n")[0]),
        f"{len(erased)} packs with {sum(pack.instances for pack in erased)} instances of "
        f"{len(found.studies)} studies are erased{f', {left} packs were left' if left else ''}; "
        f"the certificate is {path}",
    )
    return found.complete


def _check_place(call: Invocation, read: "PlanFile") -> None:
    from appliance.foundation.errors import Refused, UsageError

    if not call.config.writes:
        raise UsageError(
            "carry out the plan", call.config.node.name, "this standby writes no ledger",
            "Carry it out on a node that does: what is erased is written down",
        )  # fmt: skip
    cloud, made = call.config.cloud, read.plan
    here = (call.config.node.name, cloud.endpoint_url, cloud.bucket, cloud.prefix)
    if here != (made.node, made.endpoint_url, made.bucket, made.prefix):
        raise Refused(
            "carry out the plan", f"of {made.node}, bucket {made.bucket}",
            "it was made on another node, or for another bucket", "Make a new plan here",
        )  # fmt: skip


def _credentials(*, asking: bool) -> "Credentials":
    from appliance.foundation.errors import UsageError
    from appliance.remote.s3_client import Credentials

    key_id, secret = os.environ.get(KEY_ID, ""), os.environ.get(SECRET, "")
    token = os.environ.get(TOKEN) or None
    if not key_id and asking:
        key_id = typer.prompt("Administrator's access key id", err=True)
        secret = typer.prompt("Secret access key", hide_input=True, err=True)
        token = typer.prompt("Session token", "", hide_input=True, show_default=False, err=True)
    if not key_id or not secret:
        raise UsageError(
            "carry out the plan", "", "no administrator's credential",
            f"Set {KEY_ID} and {SECRET}; the node's own has no right to delete",
        )  # fmt: skip
    return Credentials(key_id, secret, token or None)


def _need_uplink(parts: "Parts") -> None:
    from appliance.archive.status import STALE_S, read_uplink_status
    from appliance.foundation.errors import Busy

    said = read_uplink_status(parts.layout)
    if said is None or parts.clock.now().timestamp() - said.at_s > STALE_S:
        raise Busy(
            "carry out the plan", "", "azekura uplink does not run, or does not answer",
            "Start it: it writes down in the ledger what was erased",
        )  # fmt: skip
    for problem in said.problems:
        if problem["condition"] in _NO_LEDGER:
            raise Busy("carry out the plan", "", problem["sentence"], problem["hint"])


def _confirm(call: Invocation, read: "PlanFile", given: str) -> None:
    from appliance.foundation.errors import Refused, UsageError

    if given:
        if given != read.sha256:
            raise Refused("confirm", given[:64], "is not the plan's hash", "Read the plan again")
        return
    if call.output.as_json or not sys.stdin.isatty():
        raise UsageError("confirm", "", "nobody can be asked", "Give --confirm HASH")
    phrase = f"erase {len(read.plan.studies)} studies {read.sha256[:8]}"
    found = _summary(read.sha256, read.plan)
    typer.echo(
        f"{found['studies']} studies, {found['packs']} packs, {found['instances']} instances of "
        f"bucket {read.plan.bucket} will be gone for ever, with every local copy.", err=True,
    )  # fmt: skip
    if typer.prompt(f"Type '{phrase}'", err=True) != phrase:
        raise Refused("confirm", "the phrase", "it was not typed; nothing was erased")
