"""`azekura demo`: a node with its own object store, keys and sample studies, in one folder."""

import os
from typing import Annotated

import typer

from appliance.cli import invocation


def demo(
    context: typer.Context,
    data: Annotated[
        str, typer.Option("--data", metavar="DIR", help="Where everything is kept.")
    ] = "demo-data",
    port: Annotated[int, typer.Option("--port", help="The DICOM port.")] = 11112,
    web_port: Annotated[int, typer.Option("--web-port", help="The port of DICOMweb.")] = 8443,
    once: Annotated[
        bool, typer.Option("--once", help="End when the samples are verified, instead of serving.")
    ] = False,
) -> None:
    """Run a demo: embedded S3 with an Object Lock bucket, node, keys, sample studies.

    Press Ctrl-C to end it; the same folder goes on where it was.
    """
    from appliance.daemons.demo import Demo

    call = invocation.of(context)
    running = Demo(
        os.path.abspath(data), port, web_port, lambda line: call.output.result({"demo": line}, line)
    )
    raise typer.Exit(running.run(once=once))
