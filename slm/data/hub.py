"""Stories from the Hugging Face hub, through the library `datasets`, with a short timeout."""

import contextlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from slm.data.columns import StoryText
from slm.data.source import Piece, tidy
from slm.errors import UserError

PROBE_SECONDS = 3.0


@dataclass(frozen=True)
class HubPiece:
    """A range of rows of a hub data set's split."""

    rows: Any
    """A memory-mapped `datasets.Dataset`, pickled as its file names."""
    start: int
    stop: int
    text: StoryText
    split: str | None
    weight: int
    label: str
    has_columns: bool = True

    def stories(self) -> Iterator[str]:
        columns = list(self.text.columns)
        rows = self.rows.select_columns(columns).select(range(self.start, self.stop))
        for block in rows.iter(batch_size=128):
            for values in zip(*(block[column] for column in columns), strict=True):
                yield self.text.of(dict(zip(columns, values, strict=True)), "the hub's data")


class HubSource:
    """A data set of the Hugging Face hub, or a local folder in the layout of a hub repository."""

    def __init__(self, repository: str, text: StoryText) -> None:
        local = Path(repository).expanduser()
        self.repository = str(local.resolve()) if local.is_dir() else repository
        self.text = text
        self.spec = f"hub:{self.repository}"
        self.name = tidy(self.repository.rstrip("/").rpartition("/")[2])

    @cached_property
    def _splits(self) -> dict[str, Any]:
        return load(self.repository)

    def revision(self) -> str:
        """The downloaded commit."""
        return revision(next(iter(self._splits.values())))

    def exists(self) -> bool:
        return True

    def unchanged_since(self, revision: str) -> bool:
        """Always true: prepared data must work without a network."""
        return True

    def describe(self) -> str:
        return ", ".join(f"{name}: {len(rows):,} rows" for name, rows in self._splits.items())

    def pieces(self, piece_bytes: int) -> list[Piece]:
        """Ranges of rows of the training split, then of the validation split if there is one."""
        if "train" not in self._splits:
            found = f"{self.spec} has the splits {', '.join(self._splits)}"
            raise UserError(found, "a split named train", "choose another data set")
        splits = [split for split in ("train", "validation") if split in self._splits]
        pieces: list[Piece] = []
        for split in splits:
            rows = self._splits[split]
            self.text.check(rows.column_names, self.spec)
            size = rows.data.nbytes
            step = max(1, len(rows) * piece_bytes // max(1, size))
            for start in range(0, len(rows), step):
                stop = min(start + step, len(rows))
                label = f"{self.spec} {split} {start}-{stop} {revision(rows)}"
                known = split if len(splits) == 2 else None
                weight = size * (stop - start) // len(rows)
                pieces.append(HubPiece(rows, start, stop, self.text, known, weight, label))
        return pieces


def load(repository: str) -> dict[str, Any]:
    """Downloads a data set, or takes it from the local cache: `datasets.Dataset`s by split.

    Raises:
        UserError: The hub cannot be reached and the data set is not cached, or the repository does
            not exist or cannot be read.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    set_offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    offline = not Path(repository).is_dir() and (set_offline or not _reachable(endpoint))
    if offline:
        # The client retries for minutes; in offline mode it only uses its cache.
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    import datasets
    import huggingface_hub.constants

    if offline:
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
    try:
        return dict(datasets.load_dataset(repository))
    except Exception as error:
        if offline:
            reason = f"{endpoint} did not answer within {PROBE_SECONDS:.0f} seconds"
            if set_offline:
                reason = "HF_HUB_OFFLINE is set"
            raise UserError(
                f"{reason}, and the local cache does not contain {repository}",
                f"a network connection to download {repository} once",
                "use --data.source builtin (this project's own stories) or --data.source PATH",
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"hub:{repository} cannot be loaded: {reason}",
            "a public data set with a text column, such as hub:roneneldan/TinyStories",
            "check the name; for a private data set log in with `hf auth login`",
        ) from error


def revision(dataset: Any) -> str:
    """The commit in the name of the cache folder of `datasets`; "" for data held in memory."""
    files = dataset.cache_files
    return Path(files[0]["filename"]).parent.name if files else ""


def _reachable(url: str) -> bool:
    """Whether a server answers at `url` in time."""
    answered = threading.Event()

    def probe() -> None:
        request = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(OSError, ValueError):
            try:
                urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
            except urllib.error.HTTPError as error:
                error.close()  # a status such as 404 is an answer
            answered.set()

    # In a thread, because name resolution has no timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answered.is_set()
