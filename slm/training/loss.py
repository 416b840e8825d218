"""The training loss: `slm.model.reference.next_token_loss` without all logits at once.

Shape suffixes: B batch, T positions, N positions of all windows (B T), n positions of a chunk, C
width, V vocabulary, P vocabulary padded to a multiple of 64.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from slm.data.batches import IGNORED
from slm.model import GPT

_PADDING = 64  # rows: GPUs want multiples of 8 at least, and GPT-2's 50,257 is odd
# Rather than store GELU's and the norms' results, a compiled step on a CPU computes them again: no
# slower, and little more than half of a block's memory.
_ACTIVATION_BUDGET = 0.9
_SLICE = 8192  # tokens whose part of the weight's gradient fits into a CPU's cache

Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class NextTokenLoss:
    """Mean cross-entropy of the next token, in nats: log(sum of exp(logits)) - logit of the target.

    Called with a model, token ids (B, T) and the ids that follow them (B, T), both int64. A target
    `IGNORED` adds nothing to the sum, but its position is counted in the mean: so a micro-batch has
    the same weight whatever it contains, and accumulation and processes change nothing.

    `compile` compiles the network and the softmax, each for fixed shapes. Functions are compiled,
    not modules: weights keep their names in checkpoints, and evaluation and generation call the
    same model uncompiled.
    """

    def __init__(self, compile: bool = False) -> None:
        self.compiled = compile
        self._network: Callable[[GPT, Tensor], Tensor] = GPT.from_embeddings
        self._kernel: Kernel = softmax_gradient_
        self._workspace: dict[str, Tensor] = {}
        if compile:
            self._network = torch.compile(GPT.from_embeddings, dynamic=False)
            self._kernel = torch.compile(softmax_gradient_, dynamic=False)

    def __call__(self, model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch; gradients are computed on the way."""
        # Read when compiling only.
        budget = _ACTIVATION_BUDGET if inputs.device.type == "cpu" else 1.0
        tied_gradient: list[Tensor] | None = None
        if model.config.tied and torch.is_grad_enabled():
            tied_gradient = []
            embeddings_BTC = TiedEmbedding.apply(
                model.token_embedding.weight, inputs, tied_gradient
            )  # type: ignore[no-untyped-call]
        else:
            embeddings_BTC = model.token_embedding(inputs)
        with functorch_config.patch(activation_memory_budget=budget):
            hidden_BTC = self._network(model, embeddings_BTC)
        rows = rows_at_once(model.config.vocab_size, inputs.device.type, self.compiled)
        loss: Tensor = LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_BTC.flatten(0, 1),
            model.head_weight,
            targets.flatten(),
            rows,
            self._kernel,
            self._workspace,
            tied_gradient,
        )
        return loss

    def release(self) -> None:
        """Frees the buffers that are kept between calls."""
        self._workspace.clear()

    def recycle(self, model: GPT) -> None:
        """Takes the head's gradient, which has been used, as the buffer of the next one."""
        weight = model.head_weight
        if weight.grad is not None:
            self._workspace["gradient"], weight.grad = weight.grad, None


def rows_at_once(vocab_size: int, device: str, compiled: bool) -> int:
    """How many positions' logits to compute at once.

    A power of two, enough for efficient matrix products; on a CPU few enough to stay near the
    cache, at most 64 MiB of bfloat16, on a GPU 512. Without a compiler, softmax makes copies in
    float32: a quarter of that.
    """
    elements = 1 << (25 if device == "cpu" else 28)
    rows = max(1, elements // (1 if compiled else 4) // vocab_size)
    return 1 << (rows.bit_length() - 1)


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(hidden @ weight.T), one chunk of positions at a time.

    The logits' gradient, softmax - one-hot, is known as soon as the logits are. So each chunk goes
    forward and backward at once and is discarded: memory no longer grows with batch times
    vocabulary. The products are computed in autocast's format.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        targets_N: Tensor,
        rows: int,
        kernel: Kernel,
        workspace: dict[str, Tensor],
        tied_gradient: list[Tensor] | None = None,
    ) -> Tensor:
        """Computes the loss, and both gradients up to a factor.

        Args:
            ctx: Keeps the gradients.
            hidden_NC: Final hidden states.
            weight_VC: The output head.
            targets_N: int64; `IGNORED` at positions without loss.
            rows: Positions per chunk.
            kernel: `softmax_gradient_`, or the same compiled.
            workspace: Buffers for the next call.
            tied_gradient: Receives the weight's gradient for `TiedEmbedding`; None returns it.
        """
        device = hidden_NC.device.type
        dtype = weight_VC.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        N, (V, C) = len(hidden_NC), weight_VC.shape
        P = -(-V // _PADDING) * _PADDING
        step = _SLICE if device == "cpu" else P
        with torch.autocast(device, enabled=False):
            padded_PC = _reuse(workspace, "weight", hidden_NC, (P, C), dtype)
            padded_PC[:V] = weight_VC
            padded_PC[V:] = 0
            counted_N = targets_N != IGNORED
            targets_N = targets_N * counted_N  # any id
            # Inputs of 0 give a weight's gradient of 0; the logits' gradient is the largest matrix
            # here, and to change it would take longer.
            inputs_NC = hidden_NC.to(dtype) * counted_N.unsqueeze(1)
            d_inputs_NC = torch.empty_like(inputs_NC)
            d_weight_VC = _reuse(workspace, "gradient", weight_VC, (V, C), weight_VC.dtype)
            del workspace["gradient"]  # it is autograd's now
            buffer_nP = _reuse(workspace, "logits", hidden_NC, (min(rows, N), P), dtype)
            losses = []
            for start in range(0, N, rows):
                inputs_nC = inputs_NC[start : start + rows]
                targets_n = targets_N[start : start + rows]
                logits_nP = torch.mm(inputs_nC, padded_PC.t(), out=buffer_nP[: len(inputs_nC)])
                log_sum_n, of_target_n = kernel(logits_nP[:, :V], targets_n)
                losses.append(log_sum_n - of_target_n)
                gradient_nP = _at_targets(logits_nP, targets_n, losses[-1])
                gradient_nP[:, V:] = 0
                torch.mm(gradient_nP, padded_PC, out=d_inputs_NC[start : start + rows])
                for first in range(0, P, step):
                    part = (gradient_nP[:, first : first + step].t() @ inputs_nC)[: V - first]
                    if start == 0:
                        d_weight_VC[first : first + step] = part
                    else:
                        d_weight_VC[first : first + step] += part.to(weight_VC.dtype)
            loss = (torch.cat(losses) * counted_N).mean()
            d_inputs_NC *= counted_N.unsqueeze(1)
        ctx.save_for_backward(d_inputs_NC, d_weight_VC)
        ctx.hidden_dtype, ctx.tied_gradient = hidden_NC.dtype, tied_gradient
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Multiplies by the factor, in place: the graph can be used only once."""
        d_inputs_NC, d_weight_VC = ctx.saved_tensors
        factor = d_loss / len(d_inputs_NC)
        d_hidden_NC = d_inputs_NC.to(ctx.hidden_dtype).mul_(factor)
        d_weight: Tensor | None = d_weight_VC.mul_(factor)
        if ctx.tied_gradient is not None:
            ctx.tied_gradient.append(d_weight)
            d_weight = None
        return d_hidden_NC, d_weight, None, None, None, None, None


class TiedEmbedding(torch.autograd.Function):
    """Token embeddings from the output head's matrix.

    Their gradient is added to the head's, row by row, where autograd would allocate a second matrix
    of the vocabulary's size, mostly zeros, and add the two.
    """

    @staticmethod
    def forward(
        ctx: Any, weight_VC: Tensor, tokens_BT: Tensor, tied_gradient: list[Tensor]
    ) -> Tensor:
        """Looks up the rows of tokens (B, T): (B, T, C).

        `LinearCrossEntropy` has put the head's gradient into `tied_gradient` before the backward
        pass gets here, because the loss depends on these embeddings.
        """
        ctx.save_for_backward(tokens_BT)
        ctx.tied_gradient = tied_gradient
        return F.embedding(tokens_BT, weight_VC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_embeddings_BTC: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of both uses."""
        (tokens_BT,) = ctx.saved_tensors
        d_weight_VC = ctx.tied_gradient.pop()
        rows_NC = d_embeddings_BTC.flatten(0, 1).to(d_weight_VC.dtype)
        if d_weight_VC.device.type == "cpu":
            index_NC = tokens_BT.flatten().unsqueeze(1).expand_as(rows_NC)
            d_weight_VC.scatter_add_(0, index_NC, rows_NC)
        else:  # in a fixed order, as scatter_add_ on a GPU is not
            d_weight_VC.index_put_((tokens_BT.flatten(),), rows_NC, accumulate=True)
        return d_weight_VC, None, None


def _reuse(
    buffers: dict[str, Tensor], name: str, like: Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """An uninitialised matrix, the previous one if it fits."""
    found = buffers.get(name)
    if found is None or (found.shape, found.dtype, found.device) != (shape, dtype, like.device):
        found = buffers[name] = like.new_empty(shape, dtype=dtype)
    return found


def softmax_gradient_(logits_nV: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrites logits with the gradient of log(sum of exp(logits)): their softmax.

    Returns:
        log(sum of exp(logits)) and the target's logit for each position, in float32 or better.
    """
    x_nV = logits_nV.to(torch.promote_types(logits_nV.dtype, torch.float32))
    of_target_n = x_nV.gather(1, targets_n.unsqueeze(1)).squeeze(1)
    log_sum_n = x_nV.logsumexp(1)
    logits_nV.copy_(x_nV.sub_(log_sum_n.unsqueeze(1)).exp_())
    return log_sum_n, of_target_n


def _at_targets(gradient_nP: Tensor, targets_n: Tensor, losses_n: Tensor) -> Tensor:
    """Sets p - 1 for the targets: from the loss, because bfloat16's p - 1 would be mostly rounding.

    Not compiled: there it would cost a copy of all logits. Not by scatter_, which copies a CPU's
    whole bfloat16 matrix into float32 and back.
    """
    rows_n = torch.arange(len(targets_n), device=targets_n.device)
    gradient_nP[rows_n, targets_n] = torch.expm1(-losses_n).to(gradient_nP.dtype)
    return gradient_nP
