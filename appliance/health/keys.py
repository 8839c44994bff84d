"""Whether the keys are there, private, and put where they belong."""

import os
from collections.abc import Callable

from appliance.config.model import Keys
from appliance.foundation.errors import KeyUnavailable
from appliance.health.check import Finding, Findings, error, failed, ok, warning
from appliance.seal.identity import load_identity
from appliance.seal.signing import SigningKey

IDENTITY = "identity"
SIGNING = "signing_key"
_CREDENTIAL = "credential:"


def check_keys(keys: Keys, *, signs: bool = True) -> Findings:
    """Read the identity and the signing key as the daemons do.

    A systemd credential is there only inside its service; outside it is left to the daemon.
    `signs` false: the node writes no ledger and needs no signing key.
    """
    found = [_look(IDENTITY, keys.identity, lambda: _identity(keys))]
    if signs:
        found.append(_look(SIGNING, keys.signing, lambda: _signing(keys)))
    return found


def _look(condition: str, source: str, read: Callable[[], Finding]) -> Finding:
    if source.startswith(_CREDENTIAL) and "CREDENTIALS_DIRECTORY" not in os.environ:
        return ok(
            condition,
            f"{source} was not looked at",
            "A systemd credential is readable only inside the service",
        )
    try:
        return read()
    except KeyUnavailable as cause:
        found = failed(condition, cause)
        if found.hint.startswith("Run: "):
            return error(condition, found.sentence, "", found.hint.removeprefix("Run: "))
        return found


def _identity(keys: Keys) -> Finding:
    identities = load_identity(keys.identity)
    own = {identity.recipient for identity in identities}
    if own & set(keys.recovery):
        return warning(
            IDENTITY,
            "the recovery identity is this node's own",
            "Whoever takes the box has it, and a fire takes both: make one on another machine, "
            "print it, keep it in a safe",
        )
    older = len(identities) - 1
    return ok(
        IDENTITY,
        f"{identities[0].recipient[:16]}… is readable and private"
        + (f", with {older} older" if older else ""),
    )


def _signing(keys: Keys) -> Finding:
    return ok(SIGNING, f"{SigningKey.load(keys.signing).public_text[:24]}… is readable and private")
