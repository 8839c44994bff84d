"""`azekura key`: make identities and signing keys, and print what others need of them.

Must never print a secret: `new` writes it to a file of mode 0600, and only recipients and public
keys reach the terminal.
"""

import os
from typing import Annotated

import typer

from appliance.cli import invocation

app = typer.Typer(
    help="Make keys, and print their public halves.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def new(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to create, mode 0600.")],
    signing: Annotated[
        bool, typer.Option("--signing", help="Make an Ed25519 signing key for the ledger.")
    ] = False,
) -> None:
    """Write a new age identity to FILE and print its recipient.

    With --signing it is the key that signs a node's ledger, and its public key is printed. A file
    that exists is never overwritten.
    """
    from appliance.seal.identity import new_identity_file
    from appliance.seal.signing import SigningKey

    path = os.path.abspath(file)
    output = invocation.of(context).output
    if signing:
        public = SigningKey.create(path).public_text
        output.result({"file": path, "public_key": public}, public)
    else:
        recipient = new_identity_file(path).recipient
        output.result({"file": path, "recipient": recipient}, recipient)


@app.command()
def recipient(
    context: typer.Context,
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="An identity file; else the configured identity."),
    ] = None,
) -> None:
    """Print the recipient of an identity.

    It is what others need to seal objects to it, and no secret.
    """
    from appliance.seal.identity import load_identity

    call = invocation.of(context)
    source = os.path.abspath(file) if file else call.config.keys.identity
    found = load_identity(source)[0].recipient
    call.output.result({"source": source, "recipient": found}, found)


@app.command("list")
def list_keys(context: typer.Context) -> None:
    """List who can read what this node writes, and who signs."""
    from appliance.seal.identity import load_identity
    from appliance.seal.signing import SigningKey

    call = invocation.of(context)
    keys = call.config.keys
    current, *older = load_identity(keys.identity)
    rows: list[dict[str, str | None]] = [
        {"use": "identity", "name": call.config.node.name, "public": current.recipient}
    ]
    rows += [
        {"use": "old identity", "name": call.config.node.name, "public": identity.recipient}
        for identity in older
    ]
    rows += [{"use": "recipient", "name": None, "public": text} for text in keys.recipients]
    rows += [{"use": "recovery", "name": None, "public": text} for text in keys.recovery]
    if call.config.writes:
        signing = SigningKey.load(keys.signing).public_text
        rows.append({"use": "signing", "name": call.config.node.name, "public": signing})
    rows += [
        {"use": "signer", "name": name, "public": text}
        for name, texts in keys.signers.items()
        for text in texts
    ]
    call.output.table(rows, ("use", "name", "public"))
