"""The Hugging Face hub, through the library `datasets`, with a bounded wait."""

import contextlib
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from slm.errors import UserError

PROBE_SECONDS = 3.0


def load(repository: str) -> dict[str, Any]:
    """Downloads a data set, or takes it from the local cache, and returns its splits.

    Args:
        repository: `OWNER/NAME` on the hub, or a local folder laid out as such a repository.

    Returns:
        Split names and memory-mapped `datasets.Dataset`s.

    Raises:
        UserError: The hub cannot be reached and the cache does not hold the data set, or the
            repository does not exist or cannot be read.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    told_offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    offline = not Path(repository).is_dir() and (told_offline or not _reachable(endpoint))
    if offline:
        # The client retries for minutes; told that it is offline, it looks into its cache only.
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
            tried = (
                "HF_HUB_OFFLINE is set"
                if told_offline
                else f"{endpoint} did not answer within {PROBE_SECONDS:.0f} seconds"
            )
            raise UserError(
                f"{tried}, and the local cache does not hold {repository}",
                f"a network connection to download {repository} once",
                "go on without it: --data.source builtin (this project's own stories), or "
                "--data.source PATH for stories that lie on this machine",
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"hub:{repository} cannot be loaded: {reason}",
            "a public data set with a text column, such as hub:roneneldan/TinyStories",
            "check the name; for a private one log in with `hf auth login`",
        ) from error


def revision(dataset: Any) -> str:
    """The commit that `datasets` keys its cache folder by; "" for data held in memory."""
    files = dataset.cache_files
    return Path(files[0]["filename"]).parent.name if files else ""


def _reachable(url: str) -> bool:
    """Whether anything answers at `url` in time.

    The attempt runs in a thread of its own because resolving a name knows no time limit.
    """
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(OSError, ValueError):
            try:
                urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
            except urllib.error.HTTPError as refusal:
                refusal.close()  # a refusal is an answer
            answered.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    return answered.is_set()
