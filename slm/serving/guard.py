"""What every request passes first: a limit on its size, and a count of its outcome."""

import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 1 << 20
"""Of a request's body."""
HUNG_UP = 499
"""The status, as nginx has it, of a request whose client did not wait for the answer."""


class Guard:
    """ASGI middleware.

    Args:
        app: The application.
        observe: Called with path, status and seconds of each request, when it has been answered.
    """

    def __init__(self, app: ASGIApp, observe: Callable[[str, int, float], None]) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, unless it is too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), HUNG_UP
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
        except Exception:
            status = 500
            raise
        finally:
            self._observe(scope["path"], status, time.perf_counter() - started)
