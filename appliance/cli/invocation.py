"""One call of the command: its global options, and what they lead to.

Owns where the configuration file is looked for. A command takes `Invocation` from its context and
asks it for the configuration when it needs one, never at import.
"""

import contextlib
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import typer

from appliance.cli.output import Output

if TYPE_CHECKING:
    from appliance.config.model import Config
    from appliance.daemons.parts import Parts

DEFAULT_CONFIG_PATH = "/etc/azekura/azekura.toml"


class Invocation:
    """The global options of one call."""

    def __init__(self, config_path: str, *, as_json: bool) -> None:
        self.config_path = config_path
        self.output = Output(as_json=as_json)

    @cached_property
    def config(self) -> "Config":
        """The configuration; ConfigurationError when it is not usable."""
        from appliance.config.load import load

        return load(self.config_path)

    @contextlib.contextmanager
    def parts(self, *, open_index: bool = True) -> Iterator["Parts"]:
        """Give the node's parts over a block: paths, index, bucket. Only warnings are logged."""
        from appliance.daemons.parts import Parts
        from appliance.foundation import log

        log.configure(json_lines=False, level="warning")
        parts = Parts(self.config, open_index=open_index)
        try:
            yield parts
        finally:
            parts.close()


def of(context: typer.Context) -> Invocation:
    """Return the invocation to which a command's context belongs."""
    found = context.find_root().obj
    assert isinstance(found, Invocation)
    return found
