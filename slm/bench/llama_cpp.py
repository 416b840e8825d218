"""llama.cpp (package xllamacpp, prebuilt) as a baseline for generation, on the CPU."""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from slm.bench.generation_speed import GenerateFn
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

    Args:
        model: Of a shape that GGUF has.
        tokenizer: Its tokenizer.
        number_format: Of ours; see `FORMATS`.
        options: How to sample.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, number_format: str, options: SamplingOptions
    ) -> None:
        self._package = import_xllamacpp()
        self._context = model.config.block_size
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="slm-")
        name = FORMATS[number_format]
        write_gguf(model, tokenizer, Path(self._folder.name), "slm", [name])
        self._path = Path(self._folder.name) / f"model-{name}.gguf"
        self._servers: dict[int, Any] = {}

    def _server(self, slots: int) -> Any:
        if slots not in self._servers:
            params = self._package.CommonParams()
            params.model.path = str(self._path)
            params.n_ctx, params.n_parallel, params.verbosity = self._context * slots, slots, -1
            threads = torch.get_num_threads()
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
            self._servers[slots] = self._package.Server(params)
        return self._servers[slots]

    def generator(self) -> GenerateFn:
        """Generates together, in a slot each."""

        def run(prompts: Sequence[Sequence[int]], tokens: int) -> None:
            server = self._server(len(prompts))
            requests = [
                {
                    "prompt": list(prompt),
                    "n_predict": tokens,
                    "samplers": ["top_k", "temperature"],
                    "top_k": self._options.top_k or 0,
                    "temperature": self._options.temperature,
                    "seed": seed,
                    "ignore_eos": True,
                    "cache_prompt": False,
                }
                for seed, prompt in enumerate(prompts)
            ]
            with ThreadPoolExecutor(len(prompts)) as pool:
                for found in pool.map(server.handle_completions, requests):
                    assert found["usage"]["completion_tokens"] == tokens, found

        return run
