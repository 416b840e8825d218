"""The options of `predict`, and the prompts that they name."""

from dataclasses import dataclass, replace
from pathlib import Path

from slm.commands.parsing.device import DeviceOptions
from slm.commands.parsing.options import inline
from slm.errors import UserError
from slm.generation import SamplingOptions
from slm.generation.quantization import Quantization
from slm.generation.storyteller import PROMPT, StoryRequest

BATCH_SIZES = {"cpu": 16, "mps": 64, "cuda": 256}
"""Sequences that are generated together, by device."""


@dataclass(frozen=True)
class PredictOptions:
    """The options of `predict`."""

    ckpt_path: str | None = None
    """A checkpoint file, a run, or `last` or `best` of the newest run, which is also the
    default."""
    prompt: tuple[str, ...] = ()
    """How the story begins; several prompts give several stories, none the classic one, Once upon
    a time."""
    prompt_file: str | None = None
    """A file with a prompt on each line."""
    out: str | None = None
    """Write the stories to this new file, one JSON object per line. If the command is interrupted,
    repeat it: it continues where it stopped."""
    # Log-probabilities are computed if the stories are written to a file.
    sampling: SamplingOptions = inline(SamplingOptions(), "log_probs")
    weights: Quantization = "auto"
    """Number format of the weights: fp32 as trained, bf16 faster, int8 the fastest for one or two
    stories at a time, on CPUs; `auto` takes bf16 where the device multiplies it natively, else
    fp32."""
    compile: bool = False
    """Whether to generate through torch.compile; takes some ten seconds before the first story,
    pays for many on a GPU, and with --weights int8."""
    batch_size: int | None = None
    """Stories generated together at most; null takes 16 on a CPU, 256 on a CUDA GPU. On a CPU no
    story depends on it."""
    config: str | None = None
    """A YAML file of these options; those for training are ignored."""
    trainer: DeviceOptions = DeviceOptions()

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"--batch_size {self.batch_size}; 1 or more")

    def sampling_options(self) -> SamplingOptions:
        """How to sample: a line break may be typed as a backslash and an n."""
        stop = tuple(text.replace("\\n", "\n") for text in self.sampling.stop)
        return replace(self.sampling, stop=stop, log_probs=self.out is not None)

    def prompts(self) -> list[str]:
        """The prompts of the command line and of the file, or the classic one."""
        from_file = _read_prompts(Path(self.prompt_file)) if self.prompt_file else []
        return [*self.prompt, *from_file] or [PROMPT]


def _read_prompts(path: Path) -> list[str]:
    """The lines of a file, without empty ones."""
    try:
        # Not splitlines(), which also splits at Unicode's line separators within a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--prompt_file {path} cannot be read: {error}",
            "a UTF-8 text file with a prompt on each line",
            'check the path, or give the prompt itself: --prompt "Once upon a time"',
        ) from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(
            f"--prompt_file {path} contains no prompt",
            "a prompt on each line",
            'write some into it, or use --prompt "Once upon a time"',
        )
    return prompts


def make_requests(prompts: list[str], options: SamplingOptions) -> list[StoryRequest]:
    """One request for each prompt and sample, in this order; samples have consecutive seeds."""
    return [
        # A lone surrogate, as a shell may pass one, becomes "?".
        StoryRequest(
            prompt.encode(errors="replace").decode(),
            replace(options, seed=options.seed + sample, num_samples=1),
        )
        for prompt in prompts
        for sample in range(options.num_samples)
    ]
