"""What a route is: a method, its paths, who may use it, and what answers."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """`name` is for the log; `permission` is a word of `access`, "" for anybody."""

    name: str
    method: str
    paths: tuple[str, ...]
    permission: str
    handle: Handler
