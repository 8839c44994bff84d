"""Whether the configuration that was loaded is one to work with."""

import os
import stat
from urllib.parse import urlsplit

from appliance.config.model import Config
from appliance.health.check import Findings, ok, warning

CONDITION = "configuration"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_NOBODY_MAY = {
    "appliance": "List the PACS and modalities in dicom.peers",
    "standby": "They come from the sites when their ledgers are followed: start azekura uplink",
}
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def check_configuration(path: str, config: Config) -> Findings:
    """Look at a configuration file and at what is legal in it and still unwise."""
    found: Findings = []
    if os.stat(path).st_mode & _WRITABLE_BY_OTHERS:
        found.append(
            warning(
                CONDITION,
                f"{path} may be written by others than its owner",
                "Whoever writes it decides who may call and who can read the archive",
                f"chmod go-w {path}",
            )
        )
    if config.node.demo:
        found.append(
            warning(
                CONDITION,
                "the node is in demo mode",
                "Before patients: take node.demo out and name a recovery recipient",
            )
        )
    if not any(peer.addresses for peer in config.dicom.peers):
        found.append(warning(CONDITION, "no peer may call", _NOBODY_MAY[config.node.role]))
    if config.writes and config.keys.signers and not config.keys.recipients:
        names = ", ".join(config.keys.signers)
        found.append(
            warning(
                CONDITION,
                f"keys.signers names {names}, and keys.recipients nobody",
                "None of them can read what this node writes, a standby as little as a site that "
                "comes back: list their recipients, which `azekura key list` shows there",
            )
        )
    endpoint = urlsplit(config.cloud.endpoint_url)
    if endpoint.scheme == "http" and endpoint.hostname not in _LOOPBACK:
        found.append(
            warning(
                CONDITION,
                f"the bucket is reached without TLS: {config.cloud.endpoint_url}",
                "Packs are encrypted, but the line can be read and what it says changed",
            )
        )
    return found or [ok(CONDITION, f"{path} is sound")]
