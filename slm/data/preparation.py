"""From stories to `train.bin`, `validation.bin`, `tokenizer.json` and `manifest.json`.

The source is cut into pieces, several processes encode each piece into a shard, and the finished
shards are joined in order. Unfinished data are stored in a folder `unfinished`; after an
interruption, the same command continues with the missing shards. The result depends only on the
source and the options.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from slm.data.corpus import Corpus
from slm.data.joining import join_shards
from slm.data.manifest import FORMAT_VERSION, SPLITS, Manifest, id_dtype
from slm.data.source import Piece, describe_source
from slm.data.tinystories import difference_from_known
from slm.data.tokenizer import Tokenizer
from slm.data.verification import check_touched
from slm.data.workers import write_shards
from slm.errors import UserError
from slm.files import free_space, parse_json, remove_leftovers, replacing

PIECE_BYTES = 8 << 20
# A vocabulary is learnt from at most this many characters of the training split.
_VOCABULARY_CHARACTERS = 100_000_000


def find_folder(corpus: Corpus) -> Path:
    """The folder of the prepared data of a corpus, which need not exist yet.

    A given tokenizer also finds the data from which it was learnt.
    """
    root = Path(corpus.root).expanduser()
    if corpus.tokenizer not in ("gpt2", "bpe") and (given := corpus.given_tokenizer):
        learnt = root / replace(corpus, tokenizer="bpe", vocab_size=given.n_vocab).folder_name()
        if (learnt / "manifest.json").exists():
            found = Manifest.read(learnt)
            if found.tokenizer["sha256"] == given.sha256 and found.source == corpus.opened.spec:
                return learnt
    return root / corpus.folder_name()


def ensure_prepared(corpus: Corpus, folder: Path | None = None) -> Path:
    """Returns the folder of prepared data, preparing them first if necessary.

    Data prepared from another source, or with other options, are never overwritten. Data whose
    source has changed are prepared again, with the same vocabulary, so that models can continue.
    `folder` defaults to `find_folder`.

    Raises:
        UserError: The folder contains other or damaged data, or preparation fails.
    """
    folder = folder or find_folder(corpus)
    unfinished = folder / "unfinished"
    in_progress = (unfinished / "plan.json").exists()
    try:
        if _is_prepared(corpus, folder) and not in_progress:
            return folder
    except UserError:
        if not in_progress:  # else another process may be moving its files into place
            raise
    corpus.opened.pieces(PIECE_BYTES)  # an unreadable source fails before anything is written
    with _lock(folder):
        if _is_prepared(corpus, folder):  # by a process that held the lock, or was killed late
            shutil.rmtree(unfinished, ignore_errors=True)
            return folder
        tokenizer = None
        if (folder / "manifest.json").exists():
            note = f"{describe_source(corpus.opened.spec)} has changed since {folder} was prepared."
            if corpus.tokenizer == "bpe":
                tokenizer = Manifest.read(folder).make_tokenizer(folder)
                note += " The vocabulary is kept; remove the folder to learn another one."
            print(note, file=sys.stderr)
        print(f"Preparing  {describe_source(corpus.opened.spec)} into {folder}", file=sys.stderr)
        if description := corpus.opened.describe():
            print(f"Reading    {description}", file=sys.stderr)
        prepare(corpus, folder, tokenizer)
    return folder


def _is_prepared(corpus: Corpus, folder: Path) -> bool:
    """Whether the folder contains this corpus in its present state."""
    if not (folder / "manifest.json").exists():
        return False
    manifest = Manifest.load(folder)
    found = f"{folder} contains data prepared"
    remedy = "use another --data.root, or remove that folder"
    if manifest.source != corpus.opened.spec and not _same_files(corpus, manifest):
        before, now = describe_source(manifest.source), describe_source(corpus.opened.spec)
        raise UserError(f"{found} from {before}", f"data from {now}", remedy)
    for option, value in corpus.reading.items():
        stored = manifest.reading.get(option)
        if stored not in (value, None):
            raise UserError(f"{found} with {option} {stored}", f"{option} {value}", remedy)
    check_touched(folder, manifest)
    return corpus.opened.unchanged_since(manifest.revision)


def _same_files(corpus: Corpus, manifest: Manifest) -> bool:
    """Whether the source's files are the prepared ones, under another path."""
    try:
        return corpus.opened.revision() == manifest.revision
    except UserError:
        return False


def find_same_data(expected: dict[str, Any], roots: Sequence[Path]) -> Path | None:
    """The subfolder of `roots` with the data of a manifest in plain types; None if there is none.

    Data are identified by the SHA-256 of token files and vocabulary, not by their path.
    """
    hashes = [expected["splits"][split]["sha256"] for split in SPLITS]
    for path in (path for root in roots for path in sorted(root.glob("*/manifest.json"))):
        with suppress(UserError):
            manifest = Manifest.read(path.parent)
            found = [manifest.splits[split].sha256 for split in SPLITS]
            if found == hashes and manifest.tokenizer["sha256"] == expected["tokenizer"]["sha256"]:
                return path.parent
    return None


def prepare(
    corpus: Corpus,
    folder: Path,
    tokenizer: Tokenizer | None = None,
    piece_bytes: int | None = None,
) -> Manifest:
    """Tokenises both splits of a corpus into a folder, or continues an interrupted preparation.

    The manifest is written last, so a folder with a manifest is complete; earlier data stay until
    then. The same source and options give the same bytes, whatever the number of processes and
    interruptions. Each process holds a few megabytes of text at a time, or the longest story.
    `tokenizer` defaults to the corpus's, learnt if necessary, and `piece_bytes` to `PIECE_BYTES`.

    Raises:
        UserError: The source cannot be read or has no stories, or the files cannot be written.
    """
    unfinished = folder / "unfinished"
    piece_bytes = piece_bytes or PIECE_BYTES
    revision, pieces = corpus.opened.revision(), corpus.opened.pieces(piece_bytes)
    plan = _plan(corpus, pieces, revision, piece_bytes)
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        _keep_or_clear(unfinished, plan, tokenizer)
        tokenizer = tokenizer or corpus.given_tokenizer or _vocabulary(corpus, pieces, unfinished)
        tokenizer.save(Manifest.tokenizer_path(unfinished))
        shards = write_shards(corpus, pieces, tokenizer, unfinished)
        itemsize, unique = id_dtype(tokenizer.n_vocab).itemsize, corpus.clean.drop_duplicates
        splits = join_shards(shards, unfinished, itemsize, drop_duplicates=unique)
        reading = corpus.reading_of(pieces)
        manifest = Manifest(corpus.opened.spec, revision, reading, tokenizer.identity(), splits)
        _check_splits(manifest, unfinished)
        _move_into_place(unfinished, folder, tokenizer, manifest)
    except KeyboardInterrupt:
        finished = f"{len(list(unfinished.glob('?????.json')))} of {len(pieces)} shards"
        note = f"Interrupted with {finished} finished. The same command continues from there."
        print(f"\n{note}", file=sys.stderr)
        raise
    except OSError as error:
        raise UserError(
            f"the prepared data cannot be written: {error}",
            f"a writable folder with enough free space at {folder}",
            f"make room ({free_space(folder)}), or use another folder: --data.root FOLDER; "
            "finished shards are kept",
        ) from error
    if difference := difference_from_known(manifest):
        print(f"Note       {difference}", file=sys.stderr)
    return manifest


def _move_into_place(
    unfinished: Path, folder: Path, tokenizer: Tokenizer, manifest: Manifest
) -> None:
    # Until the new manifest is written, the folder is incomplete.
    (folder / "manifest.json").unlink(missing_ok=True)
    for split in SPLITS:
        Manifest.path(unfinished, split).replace(Manifest.path(folder, split))
    tokenizer.save(Manifest.tokenizer_path(folder))
    manifest.save(folder)
    shutil.rmtree(unfinished, ignore_errors=True)


def _check_splits(manifest: Manifest, unfinished: Path) -> None:
    for split, facts in manifest.splits.items():
        if facts.stories:
            continue
        shutil.rmtree(unfinished, ignore_errors=True)  # another run would fail here too
        source = describe_source(manifest.source)
        if not any(other.stories for other in manifest.splits.values()):
            raise UserError(
                f"{source} contains no story",
                "at least one for training and one for validation",
                "use a file with stories in it; in a .txt file, <|endoftext|> separates them",
            )
        part, share = ("smaller", 0.02) if split == "train" else ("larger", 0.2)
        raise UserError(
            f"the {split} split of {source} contains no story",
            "at least one story",
            f"hold out a {part} part, --data.validation_share {share}; or provide more stories (in "
            "a .txt file, <|endoftext|> separates them), or a folder of train.txt and "
            "validation.txt",
        )


def _plan(corpus: Corpus, pieces: list[Piece], revision: str, piece_bytes: int) -> dict[str, Any]:
    """Everything that shards depend on, except a vocabulary kept from earlier data."""
    given = corpus.given_tokenizer
    return {
        "format_version": FORMAT_VERSION,
        "reading": corpus.reading,
        "tokenizer": given.sha256 if given else f"bpe {corpus.vocab_size}, to be learnt",
        "revision": revision,
        "piece_bytes": piece_bytes,
        "pieces": [piece.label for piece in pieces],
    }


def _keep_or_clear(unfinished: Path, plan: dict[str, Any], tokenizer: Tokenizer | None) -> None:
    """Keeps an unfinished preparation of the same plan, and removes any other."""
    path, vocabulary = unfinished / "plan.json", Manifest.tokenizer_path(unfinished)
    remove_leftovers(unfinished)
    remove_leftovers(unfinished.parent)
    with suppress(OSError, ValueError, UserError):
        same = parse_json(path.read_bytes()) == plan
        if same and vocabulary.exists():
            found = Tokenizer.load(vocabulary)
            same = tokenizer is None or found.sha256 == tokenizer.sha256
        if same:
            return
    for old in unfinished.iterdir():
        if old.name != "lock":
            old.unlink()
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plan, indent=1), encoding="utf-8")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time prepare a folder; a killed process releases its lock."""
    path = folder / "unfinished" / "lock"
    lock, announced = FileLock(path), False
    try:
        while not lock.is_locked:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The process that held the lock may have removed the folder, and the lock with it.
            with suppress(FileNotFoundError, Timeout):
                lock.acquire(timeout=0.5 if announced else 0)
                if not path.exists():
                    lock.release()
                continue
            if not announced:
                print(f"Waiting    for another process that prepares {folder}", file=sys.stderr)
                announced = True
    except OSError as error:
        found = f"{folder} cannot be written to: {error.strerror or error}"
        remedy = "use another folder: --data.root FOLDER"
        raise UserError(found, "a writable folder", remedy) from error
    try:
        yield
    finally:
        lock.release()


def _vocabulary(corpus: Corpus, pieces: list[Piece], unfinished: Path) -> Tokenizer:
    """Learns a vocabulary from the beginnings of all pieces, or loads the one learnt before."""
    path = Manifest.tokenizer_path(unfinished)
    if path.exists():
        return Tokenizer.load(path)
    parts = [piece for piece in pieces if piece.split != "validation"]
    share = -(-_VOCABULARY_CHARACTERS // max(1, len(parts)))

    def sample() -> Iterator[str]:
        for piece in parts:
            characters = 0
            for split, story, _ in corpus.stories(piece):
                if split == "train":
                    yield story
                    characters += len(story)
                if characters >= share:
                    break

    print(f"Learning   a vocabulary of {corpus.vocab_size:,} tokens", file=sys.stderr)
    tokenizer = Tokenizer.train(sample(), corpus.vocab_size)
    if unused := tokenizer.n_unused:
        total, used = tokenizer.n_vocab, tokenizer.n_vocab - unused
        note = f"the text gives only {used:,} tokens; {unused:,} of {total:,} stay unused"
        print(f"Note       {note}", file=sys.stderr)
    return tokenizer
