"""The verb `predict`: its options, what they ask for, and where the stories go."""

import json
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from tqdm import tqdm

from slm.errors import UserError
from slm.model import SamplingOptions
from slm.training.module import StoryRequest


def add_story_arguments(parser: LightningArgumentParser) -> None:
    """Adds the prompts, the sampling options and the output."""
    parser.add_argument(
        "--prompt",
        action="append",
        type=str,
        help="How the story begins; give it several times for several stories "
        "or none for the classic one, Once upon a time.",
    )
    parser.add_argument(
        "--prompt_file", type=str | None, default=None, help="A file with a prompt on each line."
    )
    parser.add_argument(
        "--num_samples", type=int, default=1, help="Stories per prompt, with seeds seed, seed+1, …"
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="Write the stories to this new file, one JSON object per line.",
    )
    parser.add_class_arguments(SamplingOptions)


def story_requests(options: Any) -> list[StoryRequest]:
    """One request for each prompt and sample.

    Args:
        options: The parsed options of `predict`.

    Raises:
        UserError: The prompt file cannot be read or is empty, an option is out of range, or the
            output file is there already.
    """
    prompts = list(options.prompt or [])
    if options.prompt_file:
        prompts += _read_prompts(Path(options.prompt_file))
    if options.num_samples < 1:
        raise UserError(f"--num_samples {options.num_samples}", "1 or more", "--num_samples 1")
    if options.out and Path(options.out).exists():
        raise UserError(
            f"--out {options.out} is there already",
            "the name of a new file",
            "name another file, or remove that one first",
        )
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise UserError(
            f"--out {options.out}: there is no folder {Path(options.out).parent}",
            "a folder that exists",
            f"mkdir -p {Path(options.out).parent}",
        )
    try:
        sampling = SamplingOptions(
            **{field.name: getattr(options, field.name) for field in fields(SamplingOptions)}
        )
    except ValueError as error:
        raise UserError.from_value_error(error, "slm predict --help explains it") from error
    return [
        StoryRequest(prompt, replace(sampling, seed=sampling.seed + sample))
        for prompt in prompts or ["Once upon a time"]
        for sample in range(options.num_samples)
    ]


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
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


class StoryWriter(Callback):
    """Reads each story while it is told, and writes it: to the terminal or as JSON lines.

    Args:
        out: Path of the JSON-lines file; None prints to standard output, piece by piece.
        count: Number of stories to come.
        checkpoint: Named in each JSON object.
    """

    def __init__(self, out: str | None, count: int, checkpoint: str) -> None:
        self._out = out
        self._count = count
        self._checkpoint = checkpoint
        self._bar = tqdm(total=count, desc="telling", unit="story", disable=None if out else True)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: StoryRequest,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes one story, to its end."""
        if self._out is None:
            if self._count > 1:
                print(f"{chr(10) if batch_idx else ''}--- story {batch_idx + 1} of {self._count}")
            print(batch.prompt, end="", flush=True)
            for piece in outputs:
                print(piece, end="", flush=True)
            print()
            return
        start = time.perf_counter()
        story = batch.prompt + "".join(outputs)
        record = {
            "prompt": batch.prompt,
            "story": story,
            "seconds": round(time.perf_counter() - start, 3),
            "checkpoint": self._checkpoint,
            "options": asdict(batch.options),
        }
        with Path(self._out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._bar.update()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says where the stories are."""
        self._bar.close()
        if self._out:
            print(f"{self._count} stories written to {self._out}", file=sys.stderr)
