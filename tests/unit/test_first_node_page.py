"""What the page on the first node tells an engineer to type in is what the code takes and needs."""

import json
import re
from pathlib import Path

from typer.main import get_command

from appliance.cli.main import app
from appliance.config.load import loads
from appliance.remote.s3_errors import PERMISSIONS

PAGE = (Path(__file__).parents[2] / "docs" / "operations" / "first-node.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def test_the_configuration_of_the_page_is_sound() -> None:
    assert loads(block("toml")).node.name == "site-a"


def test_the_policy_has_every_permission_that_the_code_names_but_deletion() -> None:
    """A right that is missing shows as a refusal in the night; one too many is an attacker's."""
    granted = [
        action for part in json.loads(block("json"))["Statement"] for action in part["Action"]
    ]
    needed = {name for text in PERMISSIONS.values() for name in re.findall(r"s3:\w+", text)}
    assert len(granted) == len(set(granted))
    assert set(granted) == needed - {"s3:DeleteObjectVersion"}


def test_the_commands_of_the_page_exist() -> None:
    """With every option that they are shown with."""
    known = get_command(app)
    lines = re.findall(r"^[$#].*?\bazekura ([a-z].*)", PAGE, re.MULTILINE)
    lines += re.findall(r"`azekura ([a-z][^`]*)`", PAGE)
    assert len(lines) > 15
    for line in lines:
        command = known
        for word in re.split(r"\s+", line.partition("#")[0].strip()):
            subcommands = getattr(command, "commands", {})
            if word in subcommands:
                command = subcommands[word]
            elif word.startswith("--"):
                options = {name for each in command.params for name in each.opts}
                assert word in options, line
        assert command is not known, line
        assert not getattr(command, "commands", {}), line
