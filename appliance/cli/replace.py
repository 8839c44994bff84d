"""`azekura replace`: this box takes the place of a lost one, or of its own lost state."""

import os
import sys
from typing import Annotated

import typer

from appliance.cli import invocation


def replace(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Take over this node's ledger from the bucket, and make the index from it.

    For a new box under a lost one's name, with the lost one's keys. The uplink must not run.
    """
    from appliance.archive.rebuild import rebuild
    from appliance.archive.replace import Replacement
    from appliance.foundation.errors import Busy
    from appliance.foundation.files import FileLock
    from appliance.seal.signing import SigningKey

    call = invocation.of(context)
    node = call.config.node.name
    with call.parts(open_index=False) as parts:
        flock = FileLock(os.path.join(parts.layout.state, "uplink.lock"))
        try:
            flock.acquire()
        except Busy as cause:
            raise Busy(
                "replace", node, "azekura uplink runs", "Stop it; azekura receive may go on"
            ) from cause
        try:
            store, identities = parts.store(), parts.identities()
            replacement = Replacement(
                parts.files, parts.layout, node, store, identities,
                SigningKey.load(call.config.keys.signing),
            )  # fmt: skip
            found = replacement.find()
            document = {
                "node": node,
                "sequence": found.sequence,
                "written_at": found.written_at,
                "incarnation": found.incarnation,
            }
            said = (
                f"the ledger of {node} in the bucket has {found.sequence} entries, the last "
                f"written {found.written_at} by incarnation {found.incarnation}"
            )
            if replacement.is_ours(found):
                call.output.result(
                    document, f"{said}: this very box. There is nothing to take over"
                )
                return
            if not yes:
                _confirm(said, as_json=call.output.as_json)
            with call.output.progress("ledger entries", found.sequence) as advance:
                replacement.take_over(found, advance)
            with call.output.progress("instances") as advance:
                others = parts.other_ledgers(store)
                rebuild(parts.layout, parts.index, node, identities, store, advance, others)
            with parts.index.read() as view:
                counts = view.counts()
        finally:
            flock.release()
    call.output.result(
        document | {"studies": counts.studies, "instances": counts.instances},
        f"{said}. It is this box's now; the index holds {counts.studies} studies, "
        f"{counts.instances} instances. Start azekura uplink",
    )


def _confirm(said: str, *, as_json: bool) -> None:
    from appliance.foundation.errors import UsageError

    if as_json or not sys.stdin.isatty():
        raise UsageError("replace", "", f"{said}, and nobody can be asked", "Give --yes")
    typer.echo(f"{said[0].upper()}{said[1:]}.")
    typer.echo("If the box that wrote it still runs, two boxes would write under one name.")
    typer.confirm("Is it gone for good, and does this box take its place?", abort=True)
