"""The verb `predict`: generates stories with a trained model, without a Trainer."""

import warnings
from dataclasses import replace
from typing import Literal

from slm.commands.lookup import open_named
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.options import FIT_SECTIONS, parse
from slm.commands.predict.options import BATCH_SIZES, PredictOptions, make_requests
from slm.commands.predict.outputs import JsonLines, Terminal
from slm.errors import UserError, user_errors
from slm.generation.quantization import can_compile, for_inference, resolve_quantization
from slm.generation.storyteller import Storyteller


def predict(arguments: Arguments) -> int:
    """Generates the stories that a command line asks for."""
    usage = 'slm predict [--ckpt_path FILE] [--prompt "Once upon a time"] [--option value ...]'
    options = parse("predict", PredictOptions, arguments, usage, FIT_SECTIONS)
    device, quantization = _arithmetic(options)
    checkpoint = open_named(options.ckpt_path, options.trainer.logs)
    storyteller = Storyteller(
        for_inference(checkpoint.make_model(), quantization, device), checkpoint.make_tokenizer()
    )
    sampling = options.sampling_options()
    prompts = options.prompts()
    _check_lengths(prompts, storyteller, sampling.past_context)
    requests = make_requests(prompts, sampling)
    output: Terminal | JsonLines = Terminal(requests)
    if options.out:
        facts = {
            "checkpoint": str(checkpoint.path.resolve()),
            "step": checkpoint.step,
            "fingerprint": checkpoint.fingerprint(),
            "weights": quantization,
            "device": device,
            "compile": options.compile,
        }
        output = file = JsonLines(options.out, requests, facts)
        requests = requests[file.done :]
    batch_size = min(options.batch_size or BATCH_SIZES[device], max(1, len(requests)))
    finished = False
    try:
        for message in ("TensorFloat32 tensor cores", "The CUDA Graph is empty"):
            warnings.filterwarnings("ignore", message)  # of torch.compile, about nothing
        for story, piece in storyteller.generate_all(
            requests, replace(sampling, num_samples=1), batch_size, options.compile
        ):
            output.write(story, piece)
        finished = True
    finally:
        output.close(finished)
    return 0


def _arithmetic(options: PredictOptions) -> tuple[str, Literal["fp32", "bf16", "int8"]]:
    """Device and number format."""
    device = options.trainer.device.type
    with user_errors("slm predict --help explains it"):
        quantization = resolve_quantization(options.weights, device)
    if options.compile and not can_compile(quantization, device):
        raise UserError(
            f"--compile true with weights {quantization} on {device}",
            "int8 on a CPU, or a CUDA device",
            "--weights int8, or without --compile",
        )
    return device, quantization


def _check_lengths(prompts: list[str], storyteller: Storyteller, past_context: str) -> None:
    """Checks that prompts fit the context, if it is not to be rebuilt."""
    context = storyteller.model.config.block_size
    for prompt in prompts if past_context == "stop" else []:
        if (length := 1 + len(storyteller.tokenizer.encode(prompt))) > context:
            raise UserError(
                f"--past_context stop, and a prompt of {length} tokens: {prompt[:40]!r} …",
                f"at most {context}: the model's context",
                "a shorter prompt, or --past_context rebuild, which reads its end",
            )
