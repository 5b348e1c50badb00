"""The protocol over HTTP: who may speak, how much, and what is answered."""

from __future__ import annotations

# Before nnsight, which puts a `save` on every object and so keeps this module from being imported later.
import anyio._backends._asyncio  # noqa: F401  # isort: skip

import asyncio
import contextlib
import hmac
import secrets
import socket
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from .hall import Hall, Job
from .served import Served
from .settings import Settings


def serve(settings: Settings) -> None:
    """Load the model and answer clients until the process is told to stop (SIGINT or SIGTERM).

    Args:
        settings: What to serve, where, to whom and within which limits.

    Raises:
        OSError: The address is taken, or the checkpoint cannot be read.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    served = Served(settings)
    listener.listen(128)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    _say("This server runs the Python code that clients send.")
    _say(f"Serving {settings.name} on http://{host}:{listener.getsockname()[1]}")
    server = uvicorn.Server(
        uvicorn.Config(
            application(settings, served),
            log_level="warning",
            ws_max_size=1 << 20,
            timeout_graceful_shutdown=1,
        )
    )
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    listener.close()


def application(settings: Settings, served: Served) -> Starlette:
    """The web application.

    Args:
        settings: Limits and keys.
        served: The model.

    Returns:
        An ASGI application.
    """
    hall = Hall(settings, served)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(hall.work())
        yield
        worker.cancel()
        if hall.running is not None:
            hall.running.interrupt()

    async def request(message: Request) -> Response:
        size = message.headers.get("content-length")
        most = settings.request_bytes
        if size is None or not size.isdigit() or int(size) > most:
            return _refusal(413, f"A request has {most / 2**20:g} MiB at most, and says how long it is.")
        from nnsight.schema.request import RequestModel

        async with message.form() as form:
            try:
                asked = RequestModel.model_validate_json(str(form["data"]))
                blob: Any = form["blob"]
                job = Job(asked, await blob.read(), str(message.base_url))
            except (KeyError, ValueError, AttributeError) as error:
                return _refusal(400, f"The request is not in nnsight's format: {error}")
        return Response(hall.accept(job).model_dump_json(), media_type="application/json")

    async def subscribe(channel: WebSocket) -> None:
        await channel.accept()
        session = secrets.token_urlsafe(18)
        messages: asyncio.Queue[str | bytes] = asyncio.Queue()
        hall.listeners[session] = messages
        await channel.send_json({"session_id": session})

        async def forward() -> None:
            while True:
                message = await messages.get()
                await (channel.send_bytes(message) if isinstance(message, bytes) else channel.send_text(message))

        task = asyncio.create_task(forward())
        try:
            while True:
                await channel.receive_text()
        except (WebSocketDisconnect, RuntimeError, KeyError):
            pass
        finally:
            task.cancel()
            hall.leave(session)

    async def response(message: Request) -> Response:
        found = hall.last.get(message.path_params["job"])
        return _refusal(404, "No such job.") if found is None else Response(found, media_type="application/json")

    async def results(message: Request) -> Response:
        found = hall.results.pop(message.path_params["job"], None)
        return _refusal(404, "No such result.") if found is None else Response(found[1])

    async def status(_: Request) -> Response:
        cluster = {"nodes": {}, "running": int(hall.running is not None), "waiting": len(hall.waiting)}
        return JSONResponse({"deployments": {served.key: served.deployment()}, "cluster": cluster})

    async def env(_: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(_environment))

    async def whoami(message: Request) -> Response:
        if settings.keys is None:
            return JSONResponse({"email": None, "tags": ["trusted"]})
        known = settings.keys[message.headers["ndif-api-key"]]
        # Jobs run in the process that has the weights, whoever sends them.
        tags = sorted({*known.get("tags", ()), "trusted"})
        return JSONResponse({"email": known.get("email") or "unknown", "tags": tags})

    async def ping(_: Request) -> Response:
        return PlainTextResponse("pong")

    async def connected(_: Request) -> Response:
        return JSONResponse({"status": "connected"})

    routes = [
        WebSocketRoute("/subscribe", subscribe),
        Route("/request", request, methods=["POST"]),
        Route("/response/{job}", response),
        Route("/results/{job}", results),
        Route("/status", status),
        Route("/env", env),
        Route("/whoami", whoami),
        Route("/ping", ping),
        Route("/connected", connected),
    ]
    guard = [] if settings.keys is None else [Middleware(Guard, keys=settings.keys)]
    return Starlette(routes=routes, middleware=guard, lifespan=lifespan)


class Guard:
    """Lets only clients with a key in, except for ``/ping``."""

    def __init__(self, app: Any, keys: dict[str, Any]) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer in place of the application where there is no key."""
        if scope["type"] == "lifespan" or scope["path"] == "/ping":
            await self.app(scope, receive, send)
            return
        given = HTTPConnection(scope).headers.get("ndif-api-key", "")
        # Every key is compared, each in constant time, so that the time tells nothing.
        known = [hmac.compare_digest(given.encode(), key.encode()) for key in self.keys]
        if any(known):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif given:
            await _refusal(403, "Invalid API key.")(scope, receive, send)
        else:
            await _refusal(401, "Missing API key.")(scope, receive, send)


def _refusal(status: int, text: str) -> Response:
    return JSONResponse({"detail": text}, status_code=status)


_FOUND: dict[str, Any] = {}
_SEARCH = threading.Lock()


def _environment() -> dict[str, Any]:
    """What is installed here; looked for once, as it takes a while."""
    from nnsight.ndif import get_local_env

    with _SEARCH:
        if not _FOUND:
            _FOUND.update(get_local_env())
    return _FOUND


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
