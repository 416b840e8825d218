"""What `predict` is asked to tell."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slm.errors import UserError
from slm.generation import SamplingOptions
from slm.generation.storyteller import StoryRequest


def story_requests(prompts: Sequence[str], options: SamplingOptions) -> list[StoryRequest]:
    """One request for each prompt and sample, in this order."""
    return [
        # A lone surrogate, as a shell may hand one over, becomes "?".
        StoryRequest(
            prompt.encode(errors="replace").decode(),
            replace(options, seed=options.seed + sample, num_samples=1),
        )
        for prompt in prompts
        for sample in range(options.num_samples)
    ]


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that hold anything.

    Raises:
        UserError: The file cannot be read or holds no prompt.
    """
    try:
        # Not splitlines(), for which a line separator within a text ends a line, too.
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
            f"--prompt_file {path} holds no prompt",
            "a prompt on each line",
            'write some into it, or use --prompt "Once upon a time"',
        )
    return prompts
