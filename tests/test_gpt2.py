"""Our network as transformers' GPT-2: the same logits."""

import pytest
import torch

from slm.errors import UserError
from slm.model import GPT, GPTConfig

pytest.importorskip("transformers")

from slm.export.gpt2 import to_transformers


@pytest.mark.parametrize("bias", [False, True])
def test_the_logits_are_equal(bias):
    torch.manual_seed(0)
    model = GPT(GPTConfig(32, 100, n_layer=2, n_head=2, n_embd=16, dropout=0.2, bias=bias)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(100, (2, 32))
    with torch.inference_mode():
        torch.testing.assert_close(to_transformers(model)(tokens).logits, model(tokens))


def test_what_gpt2_lacks_is_refused():
    model = GPT(GPTConfig(32, 100, n_layer=1, n_head=2, n_embd=16, position="rotary"))
    with pytest.raises(UserError, match="position rotary"):
        to_transformers(model)
