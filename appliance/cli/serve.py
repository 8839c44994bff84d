"""`azekura serve`, `receive`, `uplink`, `web`: the daemons."""

import sys
from typing import Annotated

import typer

from appliance.cli import invocation

_Parent = Annotated[int, typer.Option("--parent", hidden=True)]


def _log_format() -> bool:
    """Return whether logs are JSON lines: for journald and files, not for a terminal."""
    return not sys.stderr.isatty()


def _prepare(parent: int) -> bool:
    from appliance.daemons.running import die_with_parent
    from appliance.foundation import log

    if parent:
        die_with_parent(parent)
    json_lines = _log_format()
    log.configure(json_lines=json_lines)
    return json_lines


def serve(context: typer.Context) -> None:
    """Run every daemon under one supervisor: for a laptop, a demo or a container."""
    from appliance.daemons import serve as daemon

    call = invocation.of(context)
    _prepare(0)
    raise typer.Exit(daemon.run(call.config, call.config_path))


def receive(
    context: typer.Context,
    parent: _Parent = 0,
    writer: Annotated[str, typer.Option("--writer", hidden=True)] = "receive",
    port: Annotated[int, typer.Option("--port", hidden=True)] = 0,
) -> None:
    """Run the DIMSE daemon: receive, answer queries, send, commit."""
    from appliance.daemons import receive as daemon

    call = invocation.of(context)
    json_lines = _prepare(parent)
    raise typer.Exit(
        daemon.run(call.config, call.config_path, writer=writer, port=port, log_json=json_lines)
    )


def uplink(context: typer.Context, parent: _Parent = 0) -> None:
    """Run the uplink daemon: seal, encrypt, upload, verify, evict."""
    from appliance.daemons import uplink as daemon

    call = invocation.of(context)
    _prepare(parent)
    raise typer.Exit(daemon.run(call.config, call.config_path))


def web(context: typer.Context, parent: _Parent = 0) -> None:
    """Run the web daemon: DICOMweb over HTTPS."""
    from appliance.daemons import web as daemon

    call = invocation.of(context)
    _prepare(parent)
    raise typer.Exit(daemon.run(call.config))
