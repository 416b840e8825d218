"""From stories to `train.bin`, `validation.bin` and `manifest.json`."""

import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from slm.data.manifest import SPLITS, Manifest, SplitFacts, id_dtype
from slm.data.sources import Source
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError

# Stories are encoded in batches of about this many characters, which bounds memory.
_BATCH_CHARACTERS = 1 << 22
# A vocabulary is learnt from this many characters of the training split at most.
_VOCABULARY_CHARACTERS = 100_000_000


def folder_name(source: Source, tokenizer: str, vocab_size: int) -> str:
    """The folder of a source's prepared data: `tinystories-gpt2`, `builtin-bpe2048`."""
    name = re.sub(r"[^\w.-]+", "-", source.name).strip("-.") or "stories"
    return f"{name}-{tokenizer}{'' if tokenizer == 'gpt2' else vocab_size}"


def ensure_prepared(source: Source, tokenizer: str, vocab_size: int, folder: Path) -> Manifest:
    """Returns the manifest of prepared data, preparing them first where that is needed.

    Data that were prepared from another source are never overwritten; data whose source has
    changed since are prepared anew.

    Args:
        source: Where the stories come from.
        tokenizer: `gpt2` or `bpe`.
        vocab_size: Size of a `bpe` vocabulary.
        folder: Where the prepared data lie or shall lie.

    Raises:
        UserError: The folder holds other or damaged data, or preparation fails.
    """
    if (folder / "manifest.json").exists():
        manifest = Manifest.load(folder)
        if manifest.source != source.spec:
            raise UserError(
                f"{folder} holds data prepared from {manifest.source}",
                f"data from {source.spec}",
                "keep both apart with another --data.root, or remove that folder",
            )
        if source.unchanged_since(manifest.revision):
            return manifest
        print(f"{source.spec} has changed since {folder} was prepared.", file=sys.stderr)
    print(f"Preparing  {source.spec} into {folder}", file=sys.stderr)
    return prepare(source, tokenizer, vocab_size, folder)


def prepare(source: Source, tokenizer: str, vocab_size: int, folder: Path) -> Manifest:
    """Tokenises both splits of a source into a folder.

    The files are written under temporary names and moved into place when both are whole; the
    manifest comes last, so a folder that has one is complete. Data that were there before stay
    until then. The same source gives the same bytes every time. Memory stays bounded by a few
    megabytes of text, or by the longest story.

    Raises:
        UserError: The source cannot be read or has no stories, or the disk refuses the files.
    """
    try:
        revision = source.revision()
        folder.mkdir(parents=True, exist_ok=True)
        encoder = _make_tokenizer(source, tokenizer, vocab_size)
        splits = {split: _write_split(source, split, encoder, folder) for split in SPLITS}
        manifest = Manifest(source.spec, revision, encoder.to_plain(), splits)
        # From here on, until the new manifest is there, the folder is not complete.
        (folder / "manifest.json").unlink(missing_ok=True)
        for split in SPLITS:
            _temporary(folder, split).replace(Manifest.path(folder, split))
        manifest.save(folder)
    except OSError as error:
        raise UserError(
            f"the prepared data cannot be written: {error}",
            f"a writable folder with enough free space at {folder}",
            f"make room ({_free(folder)} are free) or name another place: --data.root FOLDER",
        ) from error
    finally:
        for split in SPLITS:
            with contextlib.suppress(OSError):
                _temporary(folder, split).unlink(missing_ok=True)
    return manifest


def _temporary(folder: Path, split: str) -> Path:
    return folder / f"{split}.bin.tmp-{os.getpid()}"


def _make_tokenizer(source: Source, tokenizer: str, vocab_size: int) -> Tokenizer:
    if tokenizer == "gpt2":
        return Tokenizer.gpt2()

    def sample() -> Iterator[str]:
        characters = 0
        for story in source.stories("train"):
            if characters > _VOCABULARY_CHARACTERS:
                return
            characters += len(story)
            yield _clean(story)

    return Tokenizer.train(_progress(sample(), "vocabulary"), vocab_size)


def _write_split(source: Source, split: str, tokenizer: Tokenizer, folder: Path) -> SplitFacts:
    """Encodes one split into its temporary file; every story is closed by end-of-text."""
    dtype = id_dtype(tokenizer.n_vocab)
    digest = hashlib.sha256()
    stories = tokens = text_bytes = 0
    with _temporary(folder, split).open("wb") as file:
        for batch in _batches(_progress(source.stories(split), split)):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                data = np.array([*ids, tokenizer.end_of_text], dtype=dtype).tobytes()
                file.write(data)
                digest.update(data)
                stories += 1
                tokens += len(ids) + 1
                text_bytes += len(text.encode())
        file.flush()
        os.fsync(file.fileno())
    if not stories:
        raise UserError(
            f"the {split} split of {source.spec} holds no story",
            "at least one story that is not blank",
            "hold out a larger part, --data.validation_share 0.2; or give more stories (in a .txt "
            "file, <|endoftext|> stands between two), or a folder of train.txt and validation.txt",
        )
    return SplitFacts(stories, tokens, text_bytes, digest.hexdigest())


def _batches(stories: Iterable[str]) -> Iterator[list[str]]:
    """Groups stories, stripped and without the blank ones, into batches of bounded size."""
    batch: list[str] = []
    characters = 0
    for story in stories:
        text = _clean(story)
        if not text:
            continue
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _clean(story: str) -> str:
    """The story without surrounding white space; a lone surrogate, as JSON can spell, is "?"."""
    return story.strip().encode("utf-8", errors="replace").decode()


def _progress(stories: Iterator[str], label: str) -> Iterator[str]:
    bar = tqdm(
        stories, f"preparing {label}", unit=" stories", unit_scale=True, disable=None, leave=False
    )
    return iter(bar)


def _free(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{shutil.disk_usage(existing).free / 1e9:.1f} GB"
