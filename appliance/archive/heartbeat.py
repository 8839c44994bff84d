"""A heartbeat as bytes: made, signed, opened, checked. No store, no files.

The object `nodes/<node>.json` is two JSON lines: the heartbeat, and the node's signature over that
very line. It is neither locked nor encrypted, and names no patient. Must not decide what silence
means.
"""

from collections.abc import Collection
from typing import Literal

import msgspec

from appliance.archive.records import Signature
from appliance.foundation.errors import Damaged, UnsupportedFormat
from appliance.seal.signing import SigningKey, verify

FORMAT = 1
BEAT_BYTES_MAX = 16 * 1024

State = Literal["alive", "retired"]


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat", tag_field="type"):
    """What a node says of itself. `at` is the bucket's own clock, RFC 3339.

    `ledger_sequence` is the last entry of its ledger that the bucket has; `incarnation` the random
    value of its start.
    """

    format: int
    node: str
    role: str
    state: State
    at: str
    ledger_sequence: int
    incarnation: str
    software: str


def beat_key(node: str) -> str:
    """Return the key of a node's heartbeat."""
    return f"nodes/{node}.json"


def seal_beat(beat: Heartbeat, signing_key: SigningKey) -> bytes:
    """Return the object."""
    line = msgspec.json.encode(beat)
    signature = Signature(key=signing_key.public_text, signature=signing_key.sign(line))
    return line + b"\n" + msgspec.json.encode(signature) + b"\n"


def open_beat(content: bytes, node: str, signers: Collection[str]) -> Heartbeat:
    """Return the heartbeat in an object, once its signer and its place are proved.

    `signers` are the public keys of that node, of which any will do.

    Raises Damaged for what is unsigned, forged or another node's, UnsupportedFormat.
    """
    subject = f"heartbeat of {node}"
    lines = content.rstrip(b"\n").split(b"\n")
    if len(lines) != 2:
        raise Damaged("read", subject, "it is not signed")
    try:
        signature = msgspec.json.decode(lines[1], type=Signature)
        known = signature.key in signers
        if not known or not verify(signature.key, lines[0], signature.signature):
            raise Damaged("read", subject, "it is not signed by that node's key")
        beat = msgspec.json.decode(lines[0], type=Heartbeat)
    except msgspec.DecodeError as cause:
        raise Damaged("read", subject, "it is no signed heartbeat") from cause
    if beat.format != FORMAT:
        raise UnsupportedFormat("read", f"{subject}, format {beat.format}")
    if beat.node != node:
        raise Damaged("read", subject, f"it is that of {beat.node}")
    return beat
