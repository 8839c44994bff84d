"""`azekura retire`: this node takes no further store, and says so to the others."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import exit_codes, invocation

if TYPE_CHECKING:
    from appliance.daemons.parts import Parts

HEARD_S = 30.0
POLL_S = 0.5


def retire(
    context: typer.Context,
    undo: Annotated[bool, typer.Option("--undo", help="Take studies again.")] = False,
) -> None:
    """Take this node out of service: nothing more is stored here, and no standby steps in for it.

    Refused while something is pending. What is here goes on being found and sent.
    """
    from appliance.archive.freshness import Freshness
    from appliance.archive.retire import retire as retire_node
    from appliance.archive.retire import retired_at, take_up_again
    from appliance.archive.status import node_status
    from appliance.cli.status import all_verified

    call = invocation.of(context)
    node = call.config.node.name
    with call.parts(open_index=False) as parts:
        parts.try_index()
        if not undo and not retired_at(parts.layout):
            fresh = Freshness(parts.layout).wait()
            found = node_status(
                call.config, parts.layout, parts.index, parts.clock, parts.condition
            )
            if not (fresh and all_verified(found)):
                left = found["pending_instances"]
                text = (
                    f"{node} is not retired: {'some' if left is None else left} instances are "
                    "pending. azekura drain waits until they are in the bucket"
                )
                call.output.result({"node": node, "retired_at": None, "pending": left}, text)
                raise typer.Exit(exit_codes.FAULT)
        if undo:
            take_up_again(parts.files, parts.layout)
        else:
            retire_node(parts.files, parts.layout, parts.clock)
        said_so = _is_said(parts, "alive" if undo else "retired")
        since = retired_at(parts.layout)
    state = f"is retired since {since}" if since else "takes studies again"
    text = f"{node} {state}"
    if not said_so:
        text += "; the others have not been told: the uplink writes the heartbeat when it runs"
    call.output.result({"node": node, "retired_at": since or None, "told": said_so}, text)
    if not said_so:
        raise typer.Exit(exit_codes.FAULT)


def _is_said(parts: "Parts", state: str) -> bool:
    """Wait until the bucket has a heartbeat of this node in that state; False when none comes."""
    from appliance.archive.heartbeat import beat_key, open_beat
    from appliance.foundation.errors import AzekuraError
    from appliance.seal.signing import SigningKey

    node = parts.config.node.name
    end_s = time.monotonic() + HEARD_S
    try:
        store = parts.store()
        signer = SigningKey.load(parts.config.keys.signing).public_text
    except AzekuraError:
        return False
    while time.monotonic() < end_s:
        try:
            if open_beat(store.get(beat_key(node)), node, {signer}).state == state:
                return True
        except AzekuraError:
            pass  # not there, or not reachable, yet
        time.sleep(POLL_S)
    return False
