"""Which copy of an instance is served, and how copies group into versions.

Copies with the same sha256 and transfer syntax are one version. The newest copy is served; its
version is the newest version.
"""

from collections.abc import Callable, Sequence

from appliance.index.schema import Context, Copy, Order


def order_of(copy: Copy, context: Context) -> Order:
    """Return where a copy stands among all instances."""
    return Order(copy.received_at_us, context.node, copy.pack, copy.offset)


def by_version(copies: Sequence[Copy], context_of: Callable[[bytes], Context]) -> list[list[Copy]]:
    """Return the copies, which are in order, by version, the newest version last."""
    versions: dict[tuple[bytes, str], list[Copy]] = {}
    for copy in copies:
        version = (copy.sha256, context_of(copy.context).transfer_syntax_uid)
        versions[version] = [*versions.pop(version, ()), copy]
    return list(versions.values())
