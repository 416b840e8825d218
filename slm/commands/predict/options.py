"""The options of `predict`, and the prompts that they name."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slm.commands.inference import InferenceOptions
from slm.commands.parsing.options import inline
from slm.errors import UserError
from slm.generation import SamplingOptions
from slm.generation.storyteller import PROMPT, StoryRequest


@dataclass(frozen=True)
class PredictOptions:
    """The options of `predict`."""

    prompt: tuple[str, ...] = ()
    """How the story begins; several prompts give several stories. Without one, slm asks for prompts
    on a terminal, and elsewhere takes the classic one, Once upon a time."""
    prompt_file: str | None = None
    """A file with a prompt on each line."""
    out: str | None = None
    """Write the stories to this new file, one JSON object per line. If the command is interrupted,
    repeat it: it continues where it stopped."""
    words: str | None = None
    """Words that the stories are to contain: "dragon, cake, brave". Only for models trained with
    --data.request words."""
    # Log-probabilities are computed if the stories are written to a file.
    sampling: SamplingOptions = inline(SamplingOptions(), "log_probs")
    inference: InferenceOptions = inline(InferenceOptions())
    config: str | None = None
    """A YAML file of these options; those for training are ignored."""

    def sampling_options(self) -> SamplingOptions:
        """How to sample: a line break may be typed as a backslash and an n."""
        stop = tuple(text.replace("\\n", "\n") for text in self.sampling.stop)
        return replace(self.sampling, stop=stop, log_probs=0 if self.out else None)

    @property
    def asks(self) -> bool:
        """Whether to ask for prompts: on a terminal, if nothing says which or how many stories."""
        given = self.prompt or self.prompt_file or self.out or self.sampling.num_samples > 1
        return not given and sys.stdin.isatty() and sys.stdout.isatty()

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


def make_requests(
    prompts: list[str], options: SamplingOptions, words: Sequence[str] = ()
) -> list[StoryRequest]:
    """One request for each prompt and sample, in this order; samples have consecutive seeds."""
    return [
        # A lone surrogate, as a shell may pass one, becomes "?".
        StoryRequest(
            prompt.encode(errors="replace").decode(),
            replace(options, seed=options.seed + sample, num_samples=1),
            [word.encode(errors="replace").decode() for word in words],
        )
        for prompt in prompts
        for sample in range(options.num_samples)
    ]
