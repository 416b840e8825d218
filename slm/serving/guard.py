"""What every request passes first: a limit on its size, and a count of its outcome."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_BYTES = 1 << 20
"""Of a request's body."""


class Guard:
    """ASGI middleware.

    Args:
        app: The application.
        observe: Called with path, status and seconds of each request, when it has been answered.
    """

    def __init__(self, app: App, observe: Callable[[str, int, float], None]) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Passes a request on, unless it is too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499  # as nginx has it: the client hung up
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MOST_BYTES:
                raise HTTPException(413, f"a body of more than {MOST_BYTES:,} bytes")
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, counted, watched)
        finally:
            self._observe(scope["path"], status, time.perf_counter() - started)
