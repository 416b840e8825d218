"""The verb `predict`: generates stories with a trained model, without a Trainer."""

from slm.commands.inference import check_takes_words, compile_in_background
from slm.commands.parsing.arguments import Arguments
from slm.commands.parsing.options import FIT_SECTIONS, parse
from slm.commands.predict.dialogue import Dialogue
from slm.commands.predict.options import PredictOptions, make_requests
from slm.commands.predict.outputs import JsonLines, Terminal
from slm.data.requests import split_words
from slm.errors import UserError
from slm.generation.storyteller import StoryRequest, Storyteller


def predict(arguments: Arguments) -> int:
    """Generates the stories that a command line asks for."""
    usage = 'slm predict [--ckpt_path FILE] [--prompt "Once upon a time"] [--option value ...]'
    options = parse("predict", PredictOptions, arguments, usage, FIT_SECTIONS)
    inference, sampling = options.inference, options.sampling_options()
    prompts = options.prompts()
    expected = 1 if options.asks else len(prompts) * sampling.num_samples
    checkpoint, storyteller = inference.load(expected)
    words = split_words(options.words or "")
    if words:
        check_takes_words(checkpoint.takes_words)
    if options.asks:
        compile_in_background(storyteller.decode)
        Dialogue(storyteller, sampling, words, checkpoint.takes_words).run()
        return 0
    requests = make_requests(prompts, sampling, words)
    _check_lengths(requests, storyteller)
    output: Terminal | JsonLines = Terminal(requests)
    if options.out:
        facts = {
            "checkpoint": str(checkpoint.path.resolve()),
            "step": checkpoint.step,
            "fingerprint": checkpoint.fingerprint(),
            "weights": inference.resolve_weights(),
            "device": inference.device,
            "compile": inference.compile,
        }
        output = file = JsonLines(options.out, requests, facts)
        requests = requests[file.done :]
    batch_size = min(inference.rows, max(1, len(requests)))
    finished = False
    try:
        for story, piece in storyteller.generate_all(requests, batch_size):
            output.write(story, piece)
        finished = True
    finally:
        output.close(finished)
    compile_in_background(storyteller.decode)
    return 0


def _check_lengths(requests: list[StoryRequest], storyteller: Storyteller) -> None:
    """Checks that prompts fit the context, if it is not to be rebuilt."""
    context, tokenizer = storyteller.model.config.block_size, storyteller.tokenizer
    for request in requests:
        length = len(tokenizer.encode_prompt(request.prompt, request.words))
        if request.options.past_context == "stop" and length > context:
            raise UserError(
                f"--past_context stop, and a prompt of {length} tokens: {request.prompt[:40]!r} …",
                f"at most {context}: the model's context",
                "a shorter prompt, or --past_context rebuild, which reads its end",
            )
