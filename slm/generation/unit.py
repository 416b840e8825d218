"""The decode pass of a network as one function of tensors, in operations that a compiler fuses.

`slm.generation.building` compiles it, `slm.generation.compiled` runs it.

Shape suffixes: M rows (sequences), N output channels, K input channels, B, H, S, D as in `cache`.
"""

import math
import mmap

import torch
from torch import Tensor, nn

from slm import hardware
from slm.generation.cache import round_up
from slm.generation.quantization import InferenceLinear
from slm.model.gpt import GPT

_STREAMS = 4
"""Places of a matrix that are read at once for a single row, whose sums would wait for themselves
if there were fewer."""
_ALIGNMENT = 64
"""Bytes of a cache line."""


class BlockedLinear(nn.Module):
    """A linear layer as plain multiplications and sums, of which the compiler makes one loop.

    The matrix is cut into blocks of as many output channels as a vector register holds. Each weight
    is read once, converted, and multiplied with all rows; a sum runs through the input channels in
    order, so that a row's result does not depend on the number of rows.

    Args:
        layer: Whose weights, and whose number formats of inputs and outputs.
    """

    blocks: Tensor
    scales: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: InferenceLinear) -> None:
        super().__init__()
        self.in_dtype, self.out_dtype = layer.in_dtype, layer.out_dtype
        weight_NK, scales_N = layer.matrix()
        self.n_out, K = weight_NK.shape
        width = hardware.vector_floats()
        N = round_up(self.n_out, width * _STREAMS)
        padded_NK = weight_NK.new_zeros(N, K)
        padded_NK[: self.n_out] = weight_NK
        blocks = padded_NK.view(-1, width, K).transpose(1, 2).contiguous()
        self.register_buffer("blocks", blocks)
        self.register_buffer("scales", None if scales_N is None else scales_N.float())
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        x_MK = x.reshape(-1, x.size(-1)).to(self.in_dtype).float()
        # In memory of its own; otherwise the loop would compute it again for each block.
        x_MK = x_MK.as_strided(x_MK.shape, (x_MK.size(1), 1))
        parts = self.blocks.chunk(max(1, _STREAMS // len(x_MK)))
        sums = [(part.float() * x_K[:, None]).sum(1) for x_K in x_MK.unbind() for part in parts]
        out_MN = torch.stack(sums).view(len(x_MK), -1)[:, : self.n_out]
        if self.scales is not None:
            out_MN = out_MN * self.scales
        out = out_MN.to(self.out_dtype).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class _View:
    """A `CacheView` of fixed memory, in operations that the compiler fuses."""

    def __init__(
        self, positions: Tensor, slots: Tensor, layers: list[tuple[Tensor, Tensor]]
    ) -> None:
        self.positions = positions
        self._slots_S = slots
        self._layers = layers

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows_B, positions_B = torch.arange(len(queries)), self.positions[:, 0]
        S = self._slots_S.size(0)
        for stored_BHSD, new_BH1D in zip(self._layers[layer], (keys, values), strict=True):
            stored_BHSD[rows_B, :, positions_B] = new_BH1D[:, :, 0].float()
        keys_BHSD, values_BHSD = (stored[:, :, :S] for stored in self._layers[layer])
        scores_BHS = (queries.float() * keys_BHSD).sum(-1) / math.sqrt(queries.size(-1))
        future_B1S = (self._slots_S > self.positions)[:, None]
        weights_BHS = scores_BHS.masked_fill(future_B1S, float("-inf")).softmax(dim=-1)
        return (weights_BHS[..., None] * values_BHSD).sum(2, keepdim=True)


class DecodeUnit(nn.Module):
    """The decode pass as a function of tensors.

    Args:
        model: A network of `for_inference`; its layers are replaced.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        for name, layer in _layers(model):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, BlockedLinear(layer))
        self.model = model

    def forward(self, tokens: Tensor, positions: Tensor, slots: Tensor, *stored: Tensor) -> Tensor:
        """Token ids and positions, (M,); slots 0 to S - 1; keys and values: logits, (M, V)."""
        layers = list(zip(stored[::2], stored[1::2], strict=True))
        view = _View(positions[:, None], slots, layers)
        hidden_M1C = self.model.hidden(tokens[:, None], view)
        return self.model.unembed(hidden_M1C[:, 0])


def unit_weights(model: GPT) -> dict[str, Tensor]:
    """What `DecodeUnit` would read, by name; the network stays as it is."""
    layers = dict(_layers(model))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: t for name, t in tensors.items() if name.rpartition(".")[0] not in layers}
    for name, layer in layers.items():
        for part, tensor in BlockedLinear(layer).named_buffers():
            weights[f"{name}.{part}"] = tensor
    return _together({f"model.{name}": tensor.detach() for name, tensor in weights.items()})


def _layers(model: GPT) -> list[tuple[str, InferenceLinear]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, InferenceLinear)]


def _together(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in one piece of memory, of huge pages where the system has them.

    A processor reads it some 8 % faster: it looks up an address for 2 MB, not for 4 KB.
    """
    sizes = [round_up(tensor.nbytes, _ALIGNMENT) for tensor in tensors.values()]
    memory = mmap.mmap(-1, sum(sizes))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    places = torch.split(torch.frombuffer(memory, dtype=torch.uint8), sizes)
    return {
        name: place[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        for (name, tensor), place in zip(tensors.items(), places, strict=True)
    }
