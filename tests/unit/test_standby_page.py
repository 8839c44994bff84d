"""What the pages on standbys and disasters tell people to type in is what the code takes."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from appliance.cli.main import app
from appliance.config.load import loads
from appliance.seal.identity import Identity
from tests.support.published_sites import SIGNER

FOLDER = Path(__file__).parents[2] / "docs" / "operations"
STANDBY = (FOLDER / "standby.md").read_text()


def test_the_configuration_of_the_page_is_sound() -> None:
    """It is the whole of a standby's file, and the lines for a site fit into a site's."""
    whole, lines = re.findall(r"```toml\n(.*?)```", STANDBY, re.DOTALL)
    (recovery,) = re.findall(r'recovery = \["(age1\w+)"\]', whole)
    other = Identity.generate().recipient
    config = loads(whole.replace("azekura-sign1…", SIGNER).replace("age1…site-a", other))
    assert (config.node.role, config.standby.accept_stores) == ("standby", "when-silent")
    assert config.dicom.peers == ()
    site = (FOLDER / "first-node.md").read_text()
    (first,) = re.findall(r"```toml\n(.*?)```", site, re.DOTALL)
    added = lines.replace("azekura-sign1…", SIGNER).replace("age1…cloud", other)
    keys = loads(first + added).keys
    assert (keys.signers, keys.recipients) == ({"cloud": (SIGNER,)}, (other,))
    assert keys.recovery == (recovery,)


@pytest.mark.parametrize("page", ["standby.md", "disaster.md"])
def test_the_commands_of_the_page_exist(page: str) -> None:
    """With every option that they are shown with."""
    known = get_command(app)
    text = (FOLDER / page).read_text()
    lines = re.findall(r"^[$#].*?\bazekura ([a-z].*)", text, re.MULTILINE)
    lines += re.findall(r"`azekura ([a-z][^`]*)`", text)
    assert len(lines) > 5
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
