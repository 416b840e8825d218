"""llama.cpp (package xllamacpp, prebuilt) as a baseline for generation, on the CPU."""

import multiprocessing
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.export.gguf_files import write_gguf
from slm.generation import SamplingOptions
from slm.model import GPT

FORMATS = {"fp32": "f32", "bf16": "f16", "int8": "q8_0"}
"""Our number formats, and the nearest of our GGUF files."""


def import_xllamacpp() -> Any:
    """The package.

    Raises:
        UserError: It is not installed.
    """
    try:
        import xllamacpp
    except ImportError as error:
        raise UserError(
            "--vs llama.cpp without llama.cpp", "the package xllamacpp", "pip install xllamacpp"
        ) from error
    return xllamacpp


class LlamaCpp:
    """llama.cpp with our own GGUF export of a network, as many threads, and the same sampling.

    In a process of its own: it shares torch's OpenMP library, whose threads would not wait actively
    if there were more of them than processors, and both would run at half their speed.

    Args:
        model: Of a shape that GGUF has.
        tokenizer: Its tokenizer.
        number_format: Of ours; see `FORMATS`.
        options: How to sample.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, number_format: str, options: SamplingOptions
    ) -> None:
        import_xllamacpp()
        name = FORMATS[number_format]
        folder = Path(tempfile.mkdtemp(prefix="slm-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        write_gguf(model, tokenizer, folder, "slm", [name])
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        sampling = {"top_k": options.top_k or 0, "temperature": options.temperature}
        arguments = (
            theirs,
            str(folder / f"model-{name}.gguf"),
            model.config.block_size,
            torch.get_num_threads(),
            sampling,
        )
        context.Process(target=_serve, args=arguments, daemon=True).start()
        theirs.close()  # so that it ends with our end of the pipe

    def run(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        """Generates together, in a slot each; a `GenerateFn`."""
        self._pipe.send(([list(prompt) for prompt in prompts], tokens))
        assert self._pipe.recv() == [tokens] * len(prompts)


def _serve(
    pipe: Connection, path: str, context: int, threads: int, sampling: dict[str, float]
) -> None:
    """Generates for each message of prompts and a number of tokens; answers how many it made."""
    package = import_xllamacpp()
    servers: dict[int, Any] = {}
    with suppress(EOFError):
        while True:
            prompts, tokens = pipe.recv()
            slots = len(prompts)
            if slots not in servers:
                servers.clear()
                params = package.CommonParams()
                params.model.path = path
                params.n_ctx, params.n_parallel, params.verbosity = context * slots, slots, -1
                params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
                servers[slots] = package.Server(params)
            fixed = {"samplers": ["top_k", "temperature"], "ignore_eos": True, **sampling}
            requests = [
                {"prompt": p, "n_predict": tokens, "seed": seed, "cache_prompt": False, **fixed}
                for seed, p in enumerate(prompts)
            ]
            with ThreadPoolExecutor(slots) as pool:
                found = list(pool.map(servers[slots].handle_completions, requests))
            pipe.send([each["usage"]["completion_tokens"] for each in found])
