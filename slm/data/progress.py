"""Progress of a preparation: a bar on a terminal, else a line every few seconds."""

import sys
import time

from tqdm import tqdm

# Without a terminal, a line is printed every so many seconds.
_INTERVAL = 10.0


class Progress:
    """Counts stories and shards, and prints the progress; `total` is the size of all pieces."""

    def __init__(self, total: int, shards: int) -> None:
        self._total = total
        self._shards = shards
        self._done = self._weight = self._stories = self._bytes = 0
        self._start = self._printed = time.monotonic()
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
        self._bar.set_description_str(f"Preparing  {self._rates()}", refresh=False)
        self._bar.update(0)
        self._print()

    def finish(self, weight: int) -> None:
        """Counts a finished shard, whose stories have already been counted."""
        self._done += 1
        self._weight += weight
        self._bar.update(weight)
        self._print()

    def _print(self) -> None:
        now = time.monotonic()
        if self._bar.disable and now - self._printed >= _INTERVAL:
            self._printed = now
            seconds = (now - self._start) * (self._total / max(1, self._weight) - 1)
            left = f"{seconds:,.0f} s left" if self._weight else "still in the first"
            shards = f"{self._done} of {self._shards} shards"
            print(f"Preparing  {shards}, {self._rates()}, {left}", file=sys.stderr)

    def _rates(self) -> str:
        """Stories and megabytes of text per second since the start."""
        seconds = max(1e-9, time.monotonic() - self._start)
        return f"{self._stories / seconds:,.0f} stories/s, {self._bytes / seconds / 1e6:.1f} MB/s"

    def close(self) -> str:
        """Removes the bar; returns a summary."""
        self._bar.close()
        seconds, megabytes = time.monotonic() - self._start, self._bytes / 1e6
        stories = f"{self._stories:,} stories, {megabytes:,.1f} MB of text"
        return f"{stories} in {seconds:.1f} s ({self._rates()})"
