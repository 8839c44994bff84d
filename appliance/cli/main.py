"""`azekura`: the frame of the command line.

Owns the global options, the registry of commands, and the way from an error to a sentence and an
exit code. Must not import what a command needs: `azekura --help` answers in a fifth of a second, so
every module of a command imports its heavy parts inside its functions.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from appliance import __version__
from appliance.cli import (
    config,
    demo,
    doctor,
    drill,
    exit_codes,
    expire,
    key,
    replace,
    retention,
    retire,
    serve,
    status,
    study,
    token,
    verify,
)
from appliance.cli.invocation import DEFAULT_CONFIG_PATH, Invocation
from appliance.cli.output import Output
from appliance.foundation.errors import AzekuraError

app = typer.Typer(
    name="azekura",
    help="Edge archive for medical images: receives DICOM, keeps a hot cache, "
    "and sends everything sealed and locked to S3.",
    epilog="--config and --json may stand anywhere in the line. Exit codes: 0 all is well, "
    "1 a fault was found, 2 usage, 78 the configuration is not usable.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(config.app, name="config")
app.add_typer(key.app, name="key")
app.add_typer(study.app, name="study")
app.add_typer(token.app, name="token")
app.add_typer(expire.app, name="expire")
for command in (
    serve.serve, serve.receive, serve.uplink, serve.web, demo.demo, status.status, status.drain,
    doctor.doctor, verify.verify, verify.rebuild_index, verify.recover, drill.drill,
    replace.replace, retention.retention, retire.retire,
):  # fmt: skip
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"azekura {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    config_path: Annotated[
        str,
        typer.Option(
            "--config", metavar="FILE", envvar="AZEKURA_CONFIG", help="The configuration file."
        ),
    ] = DEFAULT_CONFIG_PATH,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    context.obj = Invocation(config_path, as_json=as_json)


def hoist(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the global options in front, where the frame looks for them.

    `azekura config show --json` is what people write. After `--` nothing is moved.
    """
    front: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            rest += [argument, *waiting]
            break
        if argument == "--json" or argument.startswith("--config="):
            front.append(argument)
        elif argument == "--config" and waiting:
            front += [argument, waiting.pop(0)]
        else:
            rest.append(argument)
    return front + rest


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code, having said what went wrong."""
    hoisted = hoist(arguments)
    output = Output(as_json="--json" in hoisted)
    command = typer.main.get_command(app)
    try:
        code = command.main(hoisted, prog_name="azekura", standalone_mode=False)
    except AzekuraError as error:
        output.error(error)
        return exit_codes.exit_code(error)
    except TyperException as error:
        return _usage(error, output)
    except (Abort, KeyboardInterrupt):
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # Whoever read the answer is gone; the interpreter's own flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.FAULT
    return code if isinstance(code, int) else exit_codes.OK


def _usage(error: TyperException, output: Output) -> int:
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if context is not None and message == context.get_help():
        print(message)
    else:
        path = context.command_path if context is not None else "azekura"
        output.usage_error(message, f"`{path} --help` shows what it takes.")
    return exit_codes.USAGE


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
