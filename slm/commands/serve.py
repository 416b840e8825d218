"""The verb `serve`: an OpenAI-compatible server."""

import math
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from slm.commands.inference import InferenceOptions, compile_in_background
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.keys import read_key
from slm.commands.parsing.options import inline, parse
from slm.errors import UserError
from slm.files import shortened

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServeOptions:
    """The options of `serve`."""

    inference: InferenceOptions = inline(InferenceOptions())
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is reachable from other machines."""
    port: int = 8000
    """The port; 0 takes a free one."""
    name: str = "slm"
    """The model's name, for clients."""
    max_tokens: int = 1000
    """New tokens of a story at most."""
    queue: int = 64
    """Stories that wait at most while as many as --batch_size are generated; then requests are
    answered with status 503."""
    timeout: float = 120.0
    """Seconds for a request, its time in the queue included."""

    def __post_init__(self) -> None:
        check_ranges(self, max_tokens=1)


def check_ranges(options: Any, **least: int) -> None:
    """Checks `port`, `queue` and `timeout`, and other options against their least values."""
    for name, value in ({"port": 0, "queue": 0, "timeout": 1} | least).items():
        if not value <= getattr(options, name) < math.inf:
            raise ValueError(f"--{name} {getattr(options, name)}; {value} or more")
    if options.port > 65535:
        raise ValueError(f"--port {options.port}; at most 65535")


def serve(arguments: Arguments) -> int:
    """Answers requests until a signal asks to stop; then finishes those under way."""
    usage = "slm serve [--ckpt_path FILE] [--port 8000] [--option value ...]"
    options = parse("serve", ServeOptions, arguments, usage)
    key = read_key("SLM_API_KEY")
    try:
        import uvicorn

        from slm.serving.api import make_app
        from slm.serving.protocol import Allowed
    except ModuleNotFoundError as error:
        raise missing_extra("serve", error) from error
    from slm.serving.scheduler import Limits, Scheduler

    _allow_many_connections()
    with open_socket(options.host, options.port) as listening:
        checkpoint, storyteller = options.inference.load()
        rows = options.inference.rows
        limits = Limits(options.queue, options.timeout)
        compile_in_background(storyteller.decode)
        scheduler = Scheduler(storyteller, rows, limits)
        context = storyteller.model.config.block_size
        allowed = Allowed(options.name, context, checkpoint.takes_words, options.max_tokens, rows)
        address = shown_address(options.host, listening.getsockname()[1])
        print(
            f"Serving    {shortened(checkpoint.path)} at {address}/v1, {rows} stories at once\n"
            f"Try        curl {address}/v1/completions -H 'Content-Type: application/json' "
            '-d \'{"prompt": "Once upon a time"}\'',
            file=sys.stderr,
        )
        if key is None and options.host not in _LOOPBACK:
            print(
                "Warning    anyone who reaches this address can use it; SLM_API_KEY sets a key",
                file=sys.stderr,
            )
        config = uvicorn.Config(
            make_app(scheduler, allowed, key),
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=round(options.timeout),
        )
        with suppress(KeyboardInterrupt):  # raised again after what is under way is finished
            uvicorn.Server(config).run([listening])
    print(f"Stopped    {scheduler.generated:,} tokens generated", file=sys.stderr)
    return 0


def _allow_many_connections() -> None:
    """Raises the limit on open files, often 1,024, as far as it may be raised."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def missing_extra(extra: str, error: ModuleNotFoundError) -> UserError:
    """The error for a verb whose packages are not installed."""
    if str(error.name).startswith("slm"):
        raise error
    return UserError(
        f"slm {extra} needs the package {error.name}, which is not installed",
        f"the extra `{extra}`",
        f"pip install 'slm-stories[{extra}]', or in a clone: pip install -e '.[{extra}]'",
    )


def shown_address(host: str, port: int) -> str:
    """The address for a browser."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: The address does not exist, or is in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:  # the latter for a name that cannot be one
        raise UserError(
            f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}",
            "an address of this machine and a free port",
            f"--port {port + 1}, or --port 0 for any free one",
        ) from error
