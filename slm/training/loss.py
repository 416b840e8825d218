"""The loss that training minimises.

Shape suffixes: B batch, T positions, V vocabulary, N positions of all windows (B T).
"""

from collections.abc import Callable

from torch import Tensor

from slm.model import GPT

Loss = Callable[[GPT, Tensor, Tensor], Tensor]


def next_token_loss(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats: log(sum of exp(logits)) - logit of the target.

    The same as `F.cross_entropy`, but in a form that the compiler fuses: no table of
    log-probabilities of all tokens is written to memory, forward or backward.

    Args:
        model: The network.
        inputs: Token ids, (B, T), int64.
        targets: The ids that follow them, (B, T), int64.
    """
    logits_NV = model(inputs).flatten(0, 1).float()
    of_target_N = logits_NV.gather(1, targets.view(-1, 1)).squeeze(1)
    loss: Tensor = (logits_NV.logsumexp(dim=1) - of_target_N).mean()
    return loss
