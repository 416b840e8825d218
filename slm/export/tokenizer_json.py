"""The tokenizer as Hugging Face's `tokenizer.json`, and back."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from slm.data.builtin.stories import stories
from slm.data.tokenizer import END_OF_TEXT, Tokenizer, byte_of_printable, printable_token
from slm.errors import UserError


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    """Every token by its id, as byte-level BPE files write it; unused ids have names of their own.

    End-of-text is the last one.
    """
    names = [
        printable_token(token) if token else f"<|unused_{number}|>"
        for number, token in enumerate(tokenizer.token_bytes)
    ]
    names[tokenizer.end_of_text] = END_OF_TEXT
    return names


def merges(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """The pair of tokens that each merge joins, in the order of the ids that they give.

    The ids are merge priorities: the last two pieces of a token are what remains of its bytes once
    all merges of lower ids are done.
    """
    ranks = {token: rank for rank, token in enumerate(tokenizer.token_bytes) if token}
    for token, rank in ranks.items():
        pieces = [bytes([byte]) for byte in token]
        while len(pieces) > 2:
            joined = [ranks.get(left + right, rank) for left, right in pairwise(pieces)]
            first = joined.index(min(joined))
            pieces[first : first + 2] = [pieces[first] + pieces[first + 1]]
        if len(pieces) == 2:
            yield printable_token(pieces[0]), printable_token(pieces[1])


def to_json(tokenizer: Tokenizer) -> str:
    """The contents of `tokenizer.json`; encoding a text puts end-of-text in front."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, pre_tokenizers, processors

    ids = {token: number for number, token in enumerate(vocabulary(tokenizer))}
    fast = FastTokenizer(models.BPE(vocab=ids, merges=list(merges(tokenizer))))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([END_OF_TEXT])
    fast.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, tokenizer.end_of_text)],
    )
    return fast.to_str(pretty=True)


_OPTIONS = (
    "byte_fallback", "continuing_subword_prefix", "dropout", "end_of_word_suffix", "ignore_merges",
)  # fmt: skip
"""Of a BPE model: each changes the encoding."""
_PROBE = "It's 12345 'Ll don't we'VE  two\n\n\tTabs\r\n été 漢字 1.5% ... a_b  \u00a0end  "
"""Texts that tokenizers split differently before they merge."""


def from_json(path: Path, end_of_text: str | int, n_vocab: int) -> tuple[Tokenizer, list[int]]:
    """Reads a byte-level BPE tokenizer that splits text as GPT-2's does.

    Args:
        path: A `tokenizer.json`.
        end_of_text: The token that ends a text, or its id.
        n_vocab: Rows of the model's embedding, at least as many as there are tokens.

    Returns:
        The tokenizer, in which end-of-text has the last id, and for each of its ids the id in the
        file.

    Raises:
        UserError: The file is missing, or the tokenizer is of another kind.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import pre_tokenizers

    if not path.is_file():
        raise _foreign(path, f"there is no {path.name} beside the weights")
    try:
        fast = FastTokenizer.from_file(str(path))
        plain: dict[str, Any] = json.loads(fast.to_str())
    except Exception as error:  # the library raises nothing more specific
        raise _foreign(path, f"it cannot be read: {error}") from error
    model = plain["model"]
    if model["type"] != "BPE" or plain["normalizer"]:
        raise _foreign(path, f"it is of type {model['type']}, or rewrites text before it encodes")
    if used := [option for option in _OPTIONS if model.get(option)]:
        raise _foreign(path, f"it has {used[0]} {model[used[0]]}")
    wanted = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(_PROBE)
    if fast.pre_tokenizer is None or fast.pre_tokenizer.pre_tokenize_str(_PROBE) != wanted:
        raise _foreign(path, "it splits text in another way")
    model["vocab"] |= {token["content"]: token["id"] for token in plain["added_tokens"]}
    tokenizer, ids = _from_vocabulary(path, model, end_of_text, n_vocab)
    for text in (_PROBE, *stories(20)):
        expected = fast.encode(text, add_special_tokens=False).ids
        if [ids[token] for token in tokenizer.encode(text)] != expected:
            raise _foreign(path, "its merges or added tokens give other ids")
    return tokenizer, ids


def _from_vocabulary(
    path: Path, model: dict[str, Any], end_of_text: str | int, n_vocab: int
) -> tuple[Tokenizer, list[int]]:
    byte_of, vocab = byte_of_printable(), model["vocab"]
    special = vocab.get(end_of_text) if isinstance(end_of_text, str) else end_of_text
    used = {
        token: number
        for token, number in vocab.items()
        if number != special and all(character in byte_of for character in token)
    }
    if special is None or not special < n_vocab > max(vocab.values()):
        raise _foreign(path, f"it has no {end_of_text}, or more tokens than the model")
    joined = [vocab.get("".join(pair), -1) for pair in model["merges"]]
    if joined != sorted(joined) or -1 in joined:
        raise _foreign(path, "its merges are in another order than its ids")
    reachable = {number for token, number in used.items() if len(token) == 1} | set(joined)
    order = [*(number for number in range(n_vocab) if number != special), special]
    new_id = {old: number for number, old in enumerate(order)}
    ranks = {
        bytes(byte_of[character] for character in token): new_id[number]
        for token, number in used.items()
        if number in reachable
    }
    if missing := {bytes([byte]) for byte in range(256)} - ranks.keys():
        raise _foreign(path, f"{len(missing)} of the 256 bytes have no token")
    name = "gpt2" if ranks == _gpt2_ranks(n_vocab) else "bpe"
    return Tokenizer(name, ranks, n_vocab), order


def _gpt2_ranks(n_vocab: int) -> dict[bytes, int]:
    gpt2 = Tokenizer.gpt2()
    if n_vocab != gpt2.n_vocab:
        return {}
    return {token: number for number, token in enumerate(gpt2.token_bytes) if token}


def _foreign(path: Path, what: str) -> UserError:
    return UserError(
        f"{path.parent} has an unsupported tokenizer: {what}",
        "tokenizer.json with byte-level BPE as GPT-2's: its split pattern, ids in merge order",
        "a model with such a vocabulary, as `slm export --to hf` writes it; SentencePiece "
        "vocabularies, such as Llama 2's, cannot be imported",
    )
