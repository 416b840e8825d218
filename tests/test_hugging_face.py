"""Models in transformers: the same logits, the same tokens, and back."""

import pytest
import torch
from conftest import make_stories
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data.tokenizer import END_OF_TEXT, Tokenizer
from slm.errors import UserError
from slm.export.hugging_face import to_transformers
from slm.export.shapes import check_public, public_shape
from slm.export.tokenizer_json import from_json, to_json
from slm.export.weights import from_public, to_public
from slm.model import GPT, GPTConfig

pytest.importorskip("transformers")

MODERN = {
    "position": "rotary", "norm": "rms", "qk_norm": True, "qk_gain": True, "mlp": "swiglu",
    "mlp_width": 40,
}  # fmt: skip
SHAPES = {
    "classic": {},
    "with biases": {"bias": True, "mlp": "gelu_tanh", "norm_eps": 1e-4},
    "untied": {"tied": False},
    "modern": MODERN,
    "modern, untied": MODERN | {"tied": False, "norm_eps": 1e-6},
    "llama": MODERN | {"qk_norm": False, "qk_gain": False},
}


def make_model(options):
    torch.manual_seed(0)
    model = GPT(GPTConfig(32, 100, 2, 2, 16, 0.2, **options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def model(request):
    return make_model(request.param)


def test_the_logits_are_equal(model):
    tokens = torch.randint(100, (2, 32))
    with torch.inference_mode():
        torch.testing.assert_close(to_transformers(model)(tokens).logits, model(tokens))


def test_weights_come_back_as_they_were(model):
    back = from_public(to_public(model), model.config)
    own = model.state_dict()
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "rotary"}, "position rotary"),
        (MODERN | {"qk_gain": False}, "qk_gain False"),
        (MODERN | {"mlp": "gelu"}, "mlp gelu"),
        (MODERN | {"bias": True}, "bias True"),
    ],
)
def test_other_shapes_are_refused_by_name(options, message):
    config = GPTConfig(32, 100, 1, 2, 16, **options)
    assert public_shape(config) is None
    with pytest.raises(UserError, match=message):
        check_public(config, "gpt2", "qwen3", "llama")


# ---- tokenizer ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "bpe"])
def tokenizers(request):
    """Ours, and the same one read by transformers' library."""
    from tokenizers import Tokenizer as FastTokenizer

    if request.param == "gpt2":
        tokenizer = Tokenizer.gpt2()
    else:
        tokenizer = Tokenizer.train([*make_stories(300), "Ünï — “quotes” 漢字 don't"], 400)
    return tokenizer, FastTokenizer.from_str(to_json(tokenizer))


@settings(max_examples=2000)
@given(
    text=st.one_of(
        st.text(max_size=40),
        st.text(alphabet="aé ’'\t\n\r\u00a0\u200b12漢🙂tsdlm ", max_size=60),
        st.lists(
            st.sampled_from(["Once", " upon", "  ", "\n\n", " don't", " 12345", "ß", "🙂"])
        ).map("".join),
    )
)
def test_ids_are_equal_on_odd_texts(tokenizers, text):
    ours, fast = tokenizers
    if END_OF_TEXT not in text:
        assert fast.encode(text, add_special_tokens=False).ids == ours.encode(text)
        assert fast.encode(text).ids == [ours.end_of_text, *ours.encode(text)]
        assert fast.decode(ours.encode(text)) == text


def test_the_tokenizer_comes_back_as_it_was(tokenizers, tmp_path):
    ours = tokenizers[0]
    (tmp_path / "tokenizer.json").write_text(to_json(ours), encoding="utf-8")
    back, ids = from_json(tmp_path / "tokenizer.json", END_OF_TEXT, ours.n_vocab)
    assert back.identity() == ours.identity()
    assert ids == list(range(ours.n_vocab))


def test_unused_ids_stay_unused(tmp_path):
    ours = Tokenizer.train(["ab ab"], 300)
    assert ours.n_unused > 0
    (tmp_path / "tokenizer.json").write_text(to_json(ours), encoding="utf-8")
    back, _ = from_json(tmp_path / "tokenizer.json", ours.end_of_text, 300)
    assert back.token_bytes == ours.token_bytes
