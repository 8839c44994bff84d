"""What a presentation context is, before and after negotiation. Data only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Context:
    """An accepted presentation context, roles seen from our side.

    `as_scu`: we may invoke its operations; `as_scp`: the peer may.
    """

    context_id: int
    abstract_syntax: str
    transfer_syntax: str
    as_scp: bool
    as_scu: bool


@dataclass(frozen=True, slots=True)
class Proposal:
    """A context that we propose. With a role flag set, role selection is proposed too."""

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    scu: bool = True
    scp: bool = False
