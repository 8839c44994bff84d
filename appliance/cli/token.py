"""`azekura token`: who may use DICOMweb."""

from typing import Annotated

import typer

from appliance.cli import invocation

app = typer.Typer(help="Bearer tokens for DICOMweb.", no_args_is_help=True, rich_markup_mode=None)


@app.command("new")
def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose: at most 16 characters.")],
    allow: Annotated[
        str, typer.Option("--allow", metavar="WHAT", help="read, store, or read,store.")
    ] = "read",
) -> None:
    """Print a new token, once; only its hash is kept.

    What it stores comes from the calling AE title NAME.
    """
    from appliance.archive.tokens import Tokens

    call = invocation.of(context)
    words = tuple(word.strip() for word in allow.split(",") if word.strip())
    with call.parts(open_index=False) as parts:
        secret = Tokens(parts.files, parts.clock, parts.layout).new(name, words)
    call.output.result({"name": name, "allow": words, "token": secret}, secret)


@app.command("list")
def list_tokens(context: typer.Context) -> None:
    """List the tokens, without their secrets."""
    from appliance.archive.tokens import Tokens

    call = invocation.of(context)
    with call.parts(open_index=False) as parts:
        tokens = Tokens(parts.files, parts.clock, parts.layout).all()
    rows = [
        {"name": each.name, "allow": ",".join(each.allow), "created_at": each.created_at}
        for each in tokens
    ]
    call.output.table(rows, ("name", "allow", "created_at"))


@app.command("revoke")
def revoke(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose.")],
) -> None:
    """Take a token away; the web daemon refuses it from the next second on."""
    from appliance.archive.tokens import Tokens

    call = invocation.of(context)
    with call.parts(open_index=False) as parts:
        Tokens(parts.files, parts.clock, parts.layout).revoke(name)
    call.output.result({"revoked": name}, f"{name} is revoked")
