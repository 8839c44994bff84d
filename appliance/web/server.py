"""The web daemon's server: a loop in a thread of its own, and what every request passes through.

Owns the loop and the order of things before a handler: access, log, errors, security headers.
asyncio lives in this package only; who starts the server calls it from ordinary threads.

Invariants:
- Every answer carries the security headers, every access is logged with who and what kind, never
  with a path, a query or a UID.
- No exception of ours leaves a handler: what began as an answer and fails is cut off, so that no
  client takes a part for the whole.
"""

import asyncio
import threading
import time
from collections.abc import Callable

from aiohttp import web

from appliance.foundation import log
from appliance.foundation.errors import AzekuraError, StorageFailed, UsageError
from appliance.web.access import CALLER, Access, address_of
from appliance.web.bridge import Workers
from appliance.web.limits import BODY_MAX_BYTES, STOP_MAX_S
from appliance.web.listener import Listener
from appliance.web.problem import problem_response, refused
from appliance.web.routes import Handler, Route
from appliance.web.sending import secure
from appliance.web.tls import ServerTls

START_MAX_S = 30.0
TURN_S = 1.0
_NOBODY = "-"
_log = log.get("web")


class WebServer:
    """Serves routes over TLS; `start` and `stop` are called from one ordinary thread."""

    def __init__(
        self,
        host: str,
        port: int,
        tls: ServerTls,
        access: Access,
        make_routes: Callable[[Workers], list[Route]],
        on_fatal: Callable[[AzekuraError], None],
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_turn` is called by the loop every second: one that is held up does not call it."""
        self._host = host
        self._port = port
        self._tls = tls
        self._access = access
        self._make_routes = make_routes
        self._on_fatal = on_fatal
        self._on_turn = on_turn
        self._routes: dict[Handler, Route] = {}
        self._listener: Listener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="web")

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._listener is not None
        return self._listener.port

    @property
    def thread(self) -> threading.Thread:
        """The thread of the loop; it lives from `start` to `stop`."""
        return self._thread

    def start(self) -> None:
        """Listen, and return when connections are accepted; UsageError when the port is taken."""
        self._thread.start()
        self._started.wait(START_MAX_S)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Let what is being answered end, for STOP_MAX_S at most, and end the loop."""
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001 - the boundary of a thread
            if self._started.is_set():
                _log.critical("web_server_failed", error=log.where(error))
                self._on_fatal(AzekuraError("serve", cause=type(error).__name__))
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        workers = Workers()
        application = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[self._pass])
        application.on_response_prepare.append(_secure)
        for route in self._make_routes(workers):
            self._routes[route.handle] = route
            for path in route.paths:
                application.router.add_route(route.method, path, route.handle)
        runner = web.AppRunner(application, handler_cancellation=True, handle_signals=False)
        await runner.setup()
        assert runner.server is not None
        try:
            self._listener = Listener(self._host, self._port, self._tls.context)
        except OSError as cause:
            raise UsageError(
                "listen", f"{self._host} port {self._port}", cause.strerror or "",
                "Another program has it, or the address is not this machine's: see [web]",
            ) from cause  # fmt: skip
        try:
            self._listener.serve(runner.server)
            _log.info("web_listening", host=self._host, port=self._listener.port)
            self._started.set()
            self._turn()
            await self._stopping.wait()
        finally:
            await self._listener.close()
            await runner.server.shutdown(STOP_MAX_S)
            await runner.cleanup()
            workers.close()

    def _turn(self) -> None:
        assert self._loop is not None
        self._on_turn()
        self._loop.call_later(TURN_S, self._turn)

    @web.middleware
    async def _pass(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        route = self._routes.get(handler) or Route("unknown", "", (), "", handler)
        began_s = time.monotonic()
        name = _NOBODY
        response: web.StreamResponse | None = None
        try:
            if route.permission:
                caller = await self._access.admit(request, route.permission)
                name = caller.name
                request[CALLER] = caller
            response = await route.handle(request)
        except AzekuraError as error:
            if isinstance(error, StorageFailed):
                self._on_fatal(error)
            response = _failed(request, error)
        except web.HTTPException as error:
            response = _failed(request, refused(error.status, error.reason))
        except (TimeoutError, ConnectionError, asyncio.CancelledError):
            _cut(request)  # the client is gone, or too slow
            raise
        except Exception as error:  # noqa: BLE001 - the boundary of a request
            _log.error("web_request_failed", action=route.name, error=log.where(error))
            response = _failed(request, AzekuraError(route.name, cause="it failed"))
        finally:
            # Whoever asks for the health does so every few seconds.
            say = _log.info if route.name != "health" else _log.debug
            say(
                "web_access",
                caller=name,
                address=address_of(request),
                action=route.name,
                status=response.status if response is not None else 0,
                elapsed_s=round(time.monotonic() - began_s, 3),
            )
        return response


async def _secure(_request: web.Request, response: web.StreamResponse) -> None:
    secure(response)


def _failed(request: web.Request, error: AzekuraError) -> web.StreamResponse:
    """Return the answer of an error, or cut off what has begun."""
    if request._payload_writer.output_size:  # noqa: SLF001 - aiohttp has no public word for it
        _cut(request)
        return web.Response(status=500)
    return problem_response(error)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
