"""Progress of a preparation: a bar on a terminal, else a line every few seconds."""

import sys
import time

from tqdm import tqdm

# Seconds between two lines where there is no terminal.
_PATIENCE = 10.0


class Progress:
    """Counts shards, and prints the progress.

    Args:
        total: Weight of all pieces, in bytes.
        shards: Number of shards.
    """

    def __init__(self, total: int, shards: int) -> None:
        self._total = total
        self._shards = shards
        self._done = self._weight = self._stories = self._bytes = 0
        self._start = self._spoke = time.monotonic()
        self._bar = tqdm(
            total=total,
            desc="Preparing  ",
            unit="B",
            unit_scale=True,
            disable=None,
            leave=False,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {remaining} left",
        )

    def count(self, stories: int, text_bytes: int) -> None:
        """Counts encoded stories."""
        self._stories += stories
        self._bytes += text_bytes
        self._bar.set_description_str(f"Preparing  {self.rates()}", refresh=False)
        self._bar.update(0)
        self._say()

    def finish(self, weight: int) -> None:
        """Counts a finished shard; its stories have been counted."""
        self._done += 1
        self._weight += weight
        self._bar.update(weight)
        self._say()

    def _say(self) -> None:
        now = time.monotonic()
        if self._bar.disable and now - self._spoke >= _PATIENCE:
            self._spoke = now
            left = (now - self._start) * (self._total / max(1, self._weight) - 1)
            ahead = f"{left:,.0f} s left" if self._weight else "still in the first"
            print(
                f"Preparing  {self._done} of {self._shards} shards, {self.rates()}, {ahead}",
                file=sys.stderr,
            )

    def rates(self) -> str:
        """Stories and megabytes of text per second, since the beginning."""
        seconds = max(1e-9, time.monotonic() - self._start)
        return f"{self._stories / seconds:,.0f} stories/s, {self._bytes / seconds / 1e6:.1f} MB/s"

    def close(self) -> str:
        """Removes the bar; returns what was done in which time."""
        self._bar.close()
        return (
            f"{self._stories:,} stories, {self._bytes / 1e6:,.1f} MB of text in "
            f"{time.monotonic() - self._start:.1f} s ({self.rates()})"
        )
