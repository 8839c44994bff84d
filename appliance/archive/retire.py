"""Retiring this node: it takes no further store, and its heartbeat says so.

Owns `state/retired.json`. Everything else goes on: what is here is uploaded, found and sent, so
that retiring can lose nothing.
"""

import os

import msgspec

from appliance.archive.layout import Layout
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.files import FileSystem


class _Retired(msgspec.Struct, frozen=True):
    at: str


def _path(layout: Layout) -> str:
    return os.path.join(layout.state, "retired.json")


def retire(files: FileSystem, layout: Layout, clock: Clock) -> str:
    """Retire the node, durable; return since when it is."""
    known = retired_at(layout)
    if known:
        return known
    at = isoformat(clock.now())
    files.write_atomic(_path(layout), msgspec.json.encode(_Retired(at)))
    return at


def take_up_again(files: FileSystem, layout: Layout) -> None:
    """Undo it, durable."""
    files.unlink(_path(layout))


def retired_at(layout: Layout) -> str:
    """Return since when the node is retired, RFC 3339; "" when it is not."""
    try:
        with open(_path(layout), "rb") as file:
            return msgspec.json.decode(file.read(), type=_Retired).at
    except FileNotFoundError:
        return ""
