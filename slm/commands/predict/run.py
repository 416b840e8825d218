"""The verb `predict`: tells stories with a trained model, without a Trainer."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from slm.commands.configs import expand_configs
from slm.commands.lookup import find_checkpoint_argument
from slm.commands.parsing import (
    compiling_explained,
    os_errors_explained,
    out_of_memory_explained,
)
from slm.commands.predict.options import ROWS, config_words, make_parser, sampling_options
from slm.commands.predict.outputs import JsonLines, Sink, Terminal
from slm.commands.predict.requests import read_prompts, story_requests
from slm.errors import UserError
from slm.generation import SamplingOptions
from slm.generation.quantization import can_compile, for_inference, resolve_quantization
from slm.generation.storyteller import PROMPT, Storyteller
from slm.hardware import find_device


@os_errors_explained()
def run_predict(words: Sequence[str]) -> int:
    """Tells the stories that a command line asks for.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The input has to change.
    """
    parser = make_parser()
    words, checkpoint = find_checkpoint_argument(
        "predict", expand_configs(words, partial(config_words, parser))
    )
    options = parser.parse_args(words)
    assert checkpoint is not None  # parse_args has printed the help and left, otherwise
    sampling = sampling_options(options)
    device, weights = _arithmetic(options)
    teller = Storyteller(
        for_inference(checkpoint.make_model(), weights, device), checkpoint.make_tokenizer()
    )
    requests = story_requests(_prompts(options, sampling, teller), sampling)
    sink: Sink = Terminal(requests)
    if options.out:
        facts = {
            "checkpoint": str(checkpoint.path.resolve()),
            "step": checkpoint.step,
            "fingerprint": checkpoint.fingerprint(),
            "weights": weights,
            "device": device,
            "compile": options.compile,
        }
        sink = writer = JsonLines(Path(options.out), requests, facts)
        requests = requests[writer.done :]
    rows = min(options.batch_size or ROWS[device], max(1, len(requests)))
    alike = replace(sampling, num_samples=1)
    finished = False
    try:
        compiling = compiling_explained() if options.compile else nullcontext()
        with compiling, out_of_memory_explained("--batch_size 1, or a larger number that fits"):
            for story, piece in teller.generate_all(requests, alike, rows, options.compile):
                sink.take(story, piece)
        finished = True
    finally:
        sink.close(finished)
    return 0


def _arithmetic(options: Any) -> tuple[str, Literal["fp32", "bf16", "int8"]]:
    """The device and the weights that the options mean.

    Raises:
        UserError: There is no such device, or they do not go together.
    """
    try:
        device = find_device(options.trainer.accelerator).type
        weights = resolve_quantization(options.weights, device)
    except ValueError as error:
        raise UserError.from_value_error(error, "slm predict --help explains it") from error
    if options.compile and not can_compile(weights, device):
        raise UserError(
            f"--compile true with weights {weights} on {device}",
            "int8 on a CPU, or a CUDA device",
            "--weights int8, or without --compile",
        )
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"--batch_size {options.batch_size}", "1 or more", "--batch_size 16")
    return device, weights


def _prompts(options: Any, sampling: SamplingOptions, teller: Storyteller) -> list[str]:
    """The prompts of the command line and of the file, or the classic one.

    Raises:
        UserError: The file cannot be read, or a prompt does not fit the context it has to fit.
    """
    prompts = list(options.prompt or [])
    if options.prompt_file:
        prompts += read_prompts(Path(options.prompt_file))
    context = teller.model.config.block_size
    for prompt in prompts if sampling.past_context == "stop" else []:
        if (length := 1 + len(teller.tokenizer.encode(prompt))) > context:
            raise UserError(
                f"--past_context stop, and a prompt of {length} tokens: {prompt[:40]!r} …",
                f"at most {context}: the model's context",
                "a shorter prompt, or --past_context rebuild, which reads its end",
            )
    return prompts or [PROMPT]
