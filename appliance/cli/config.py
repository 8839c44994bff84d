"""`azekura config`: check, show and describe the configuration file."""

import json
import os
from typing import TYPE_CHECKING

import typer

from appliance.cli import exit_codes, invocation
from appliance.foundation.errors import AzekuraError, ConfigurationError

if TYPE_CHECKING:
    from appliance.config.model import Config

app = typer.Typer(
    help="Check, show or describe the configuration file.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_CREDENTIAL = "credential:"


@app.command()
def check(context: typer.Context) -> None:
    """Report every fault of the file, and of the key files it names.

    Exits 78 when the file is not usable, 1 when a file that it names is not. Systemd credentials
    are there only inside the services and are not looked at.
    """
    call = invocation.of(context)
    try:
        config = call.config
    except ConfigurationError as error:
        if call.output.as_json:
            call.output.result({"usable": False, "faults": list(error.faults)}, "")
            raise typer.Exit(exit_codes.BAD_CONFIGURATION) from error
        raise
    problems = _problems(config)
    text = f"{call.config_path}: " + (
        "; the file is sound, what it names is not:\n  " + "\n  ".join(problems)
        if problems
        else "no fault"
    )
    call.output.result({"usable": True, "faults": problems}, text.replace(": ; ", ": "))
    if problems:
        raise typer.Exit(exit_codes.FAULT)


@app.command()
def show(context: typer.Context) -> None:
    """Print the configuration that counts, with every default filled in.

    Of a standby that is its own and what the sites have published; what comes from where is said.
    """
    from appliance.archive.adopted import adopted_by
    from appliance.archive.layout import Layout
    from appliance.config.describe import to_toml

    call = invocation.of(context)
    config, origins, conflicts = adopted_by(call.config, Layout(call.config.node.data_dir))
    document = config.model_dump(mode="json", by_alias=True)
    if config.node.role == "standby":
        document["adopted"] = {
            "from": [{"key": key, "value": value, "node": node} for key, value, node in origins],
            "conflicts": conflicts,
        }
    lines = [f"# adopted from {node}: {key} {value}" for key, value, node in origins]
    lines += [f"# not adopted: {each}" for each in conflicts]
    call.output.result(document, "\n".join([*lines, to_toml(config).rstrip("\n")]))


@app.command()
def schema() -> None:
    """Print the JSON schema of the file, which editors can use."""
    from appliance.config import describe

    print(json.dumps(describe.schema(), ensure_ascii=False, indent=2))


def _problems(config: "Config") -> list[str]:
    """Return what is wrong with the files that the configuration names."""
    from appliance.seal.identity import load_identity
    from appliance.seal.signing import SigningKey, check_public_text

    found: list[str] = []
    for place, source, load in (
        ("keys.identity", config.keys.identity, load_identity),
        ("keys.signing", config.keys.signing, SigningKey.load),
    ):
        if load == SigningKey.load and not config.writes:
            continue
        if not source.startswith(_CREDENTIAL):
            try:
                load(source)
            except AzekuraError as error:
                found.append(f"{place}: {error}")
    for name, signers in config.keys.signers.items():
        for signer in signers:
            try:
                check_public_text(signer)
            except ConfigurationError as error:
                found.append(f"keys.signers.{name}: {error.cause}")
    tls = config.dicom.tls
    for place, path in (
        (("certificate", tls.certificate), ("key", tls.key), ("ca", tls.ca)) if tls else ()
    ):
        if not path.startswith(_CREDENTIAL) and not os.access(path, os.R_OK):
            found.append(f"dicom.tls.{place}: {path} is not there or may not be read")
    return found
