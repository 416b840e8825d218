"""The verbs of the command line: which function runs each, and what its help says."""

from typing import NamedTuple

from slm import __version__


class Verb(NamedTuple):
    """A verb; its function takes the arguments that follow it and returns the exit status."""

    function: str
    """`module:name`, imported when the verb is used."""
    help: str
    memory_remedy: str = "a smaller model, or a device with more memory"
    """What to do if the memory does not suffice."""

    @property
    def description(self) -> str:
        """The help as a sentence."""
        return f"{self.help[0].upper()}{self.help[1:]}."


_TRAINER_MEMORY = (
    "to measure, a smaller --data.eval_batch_size; to train, a smaller --data.batch_size with more "
    "--trainer.accumulate_grad_batches, or --model.grad_checkpointing true"
)

VERBS = {
    "fit": Verb(
        "slm.commands.fit.run:fit", "train a model; prepares its data first if needed",
        _TRAINER_MEMORY,
    ),
    "validate": Verb(
        "slm.commands.fit.run:validate", "measure a checkpoint on the whole validation split",
        _TRAINER_MEMORY,
    ),
    "test": Verb(
        "slm.commands.fit.run:test",
        "measure a checkpoint as validate does, reported as test_*: TinyStories has no test split",
        _TRAINER_MEMORY,
    ),
    "predict": Verb(
        "slm.commands.predict.run:predict", "generate stories with a trained model",
        "--batch_size 1, or a larger number that fits",
    ),
    "bench": Verb("slm.commands.bench.run:bench", "measure the speed of generation or training"),
    "plot": Verb(
        "slm.commands.plot:plot", "draw a run's curves, weights and attention, or compare runs"
    ),
    "report": Verb(
        "slm.commands.report:report", "write a run's report: one HTML file with everything in it"
    ),
    "evaluate": Verb(
        "slm.commands.evaluate:evaluate",
        "score a model: minimal pairs, generated stories, loss",
    ),
    "export": Verb(
        "slm.commands.export:export",
        "write a model for transformers, llama.cpp, Ollama, onnxruntime, or as a web page",
    ),
    "import": Verb(
        "slm.commands.import_model:import_model",
        "turn a Hugging Face folder into a checkpoint for generation and training",
    ),
    "serve": Verb(
        "slm.commands.serve:serve",
        "serve stories over HTTP, with OpenAI's completions API",
        "--batch_size 1, or a larger number that fits",
    ),
    "demo": Verb(
        "slm.commands.demo:demo",
        "serve a page that generates stories and shows how",
        "--batch_size 1, or a larger number that fits",
    ),
    "verify-resume": Verb(
        "slm.commands.verify_resume:verify_resume",
        "check on this machine that a killed and resumed run equals an uninterrupted one",
    ),
    "prepare": Verb("slm.commands.prepare:prepare", "tokenise data without training"),
    "info": Verb(
        "slm.commands.info:info",
        "describe prepared data, or a checkpoint; --verify recomputes every checksum and count",
    ),
}  # fmt: skip

OVERVIEW = f"""\
slm {__version__}: train a small language model from scratch and generate stories with it

usage: slm VERB [--option value ...]      (or: python -m slm.cli VERB ...)

{"".join(f"  {name:<13} {verb.help}{chr(10)}" for name, verb in VERBS.items())}
  slm fit --config configs/quickstart.yaml            a first model, in minutes on a CPU
  slm fit --config configs/small.yaml                 the 30 M model on TinyStories
  slm fit --config configs/small.yaml --data.source stories.txt --trainer.max_steps 2000
  slm fit --budget 20m --data.source stories.txt      plan the training to fit a time budget
  slm fit --ckpt_path last                            resume an interrupted run
  slm validate                                        the best checkpoint of the newest run
  slm predict --prompt "Once upon a time"             a story from it
  slm predict                                         a prompt that stays open
  slm predict --ckpt_path FILE --prompt "One day" --num_samples 3 --out stories.jsonl
  slm plot version_0 version_1                        two runs in the same figures
  slm report                                          the newest run as one HTML file
  slm evaluate                                        how good are its stories?
  slm verify-resume --config small                    does a killed run resume exactly here?
  slm export --to gguf                                a file for llama.cpp and Ollama
  slm serve                                           an OpenAI-compatible server
  slm demo                                            a page to play with
  slm prepare --data.source "books/*.jsonl"           tokenise only
  slm bench train --config small --compile true       how fast would it train here?
  slm info data/TinyStories-gpt2 --verify             what prepared data contain; are they intact?

slm VERB --help lists a verb's options. slm --version prints the version.
"""
"""The help of the command itself."""
