"""The verb `demo`: a page that generates stories."""

import sys
import threading
from contextlib import suppress
from dataclasses import dataclass

from slm.commands.inference import InferenceOptions, compile_in_background
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.options import inline, parse
from slm.commands.serve import check_ranges, missing_extra, open_socket, shown_address
from slm.files import shortened


@dataclass(frozen=True)
class DemoOptions:
    """The options of `demo`."""

    inference: InferenceOptions = inline(InferenceOptions())
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is reachable from other machines, without a password."""
    port: int = 7860
    """The port; 0 takes a free one."""
    queue: int = 32
    """Stories that wait at most while as many as --batch_size are generated."""
    timeout: float = 120.0
    """Seconds for a story, its time in the queue included."""

    def __post_init__(self) -> None:
        check_ranges(self, queue=1)
        if ":" in self.host:
            raise ValueError(f"--host {self.host}; a name or an IPv4 address, as Gradio takes")


def demo(arguments: Arguments) -> int:
    """Shows the page until a signal asks to stop."""
    usage = "slm demo [--ckpt_path FILE] [--port 7860] [--option value ...]"
    options = parse("demo", DemoOptions, arguments, usage)
    try:
        from slm.serving.demo import launch, make_demo
    except ModuleNotFoundError as error:
        raise missing_extra("demo", error) from error
    from slm.serving.scheduler import Limits, Scheduler

    with open_socket(options.host, options.port) as free:
        port = free.getsockname()[1]
        checkpoint, storyteller = options.inference.load()
    limits = Limits(options.queue, options.timeout)
    scheduler = Scheduler(storyteller, options.inference.rows, limits)
    compile_in_background(storyteller.decode)
    page = make_demo(scheduler, checkpoint.make_model(), checkpoint.takes_words, checkpoint.label)
    with suppress(KeyboardInterrupt):
        launch(page, options.host, port, options.queue)
        address = shown_address(options.host, port)
        print(
            f"Page       {address} generates with {shortened(checkpoint.path)}; Ctrl-C ends it",
            file=sys.stderr,
        )
        threading.Event().wait()
    page.close(verbose=False)
    scheduler.close()
    return 0
