"""Linear layers in int8 for processors that add products of bytes exactly (VNNI, AMX); torch's own products of oneDNN.

An activation has a scale for each row, found at each call, so that an utterance's answer does not depend on what it is
batched with; a weight has one for each output channel. Before they are rounded each input channel is multiplied by the
root of its largest weight, and its weights are divided by it: the balance of SmoothQuant (Xiao et al. 2023, arXiv
2211.10438, section 4) by the weights alone, which needs no recorded activations.

Shapes: R rows, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_onednn = torch.ops.onednn
# Of bytes with and without a sign. The step of a row is rounded to bfloat16, by 1/256 at most: no number of the row
# leaves its byte then (the largest is 255.99 before it is cut off), and would with one more.
_MOST_SIGNED, _MOST_UNSIGNED = 127, 254
_ZERO = 128
_LEAST = 1e-12  # so that a row of zeros has a step
# What a GELU never goes below, with room for bfloat16.
GELU_FLOOR = -0.18


class Int8Linear(nn.Module):
    """x W^T + b in int8, from and to bfloat16.

    Args:
        weight: [N, K].
        bias: [N].
        floor: What no input goes below; None: anything. With it rows fill the byte, where their largest number is far
            above that, and channels are not balanced, as they are alike then.
    """

    balance: Tensor
    weight: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, floor: float | None = None) -> None:
        super().__init__()
        self.floor = floor
        exact, offset = weight.detach().float(), bias.detach().float()
        if floor is None:
            balance = exact.abs().amax(0).clamp_min(_LEAST).sqrt()  # [K]
            exact = exact / balance
            self._keep(balance=balance)
        scales = exact.abs().amax(1).clamp_min(_LEAST) / _MOST_SIGNED  # [N]
        rounded = (exact / scales[:, None]).round()
        if floor is not None:
            offset = offset + floor * rounded.sum(1) * scales
        self._keep(bias=offset.to(torch.bfloat16), scales=scales, zeros=torch.zeros(len(scales), dtype=torch.int32))
        self._keep(weight=_onednn.qlinear_prepack(rounded.to(torch.int8), None))

    def forward(self, given: Tensor) -> Tensor:
        """[..., K] -> [..., N], bfloat16."""
        rows = given.reshape(-1, given.shape[-1]).to(torch.float32, copy=True)
        if self.floor is None:
            rows.mul_(self.balance)
            largest, most, zero = rows.abs().amax(-1, keepdim=True), _MOST_SIGNED, _ZERO
        else:
            rows.sub_(self.floor)
            largest, most, zero = rows.amax(-1, keepdim=True), _MOST_UNSIGNED, 0
        step = largest.div_(most).clamp_min_(_LEAST).to(torch.bfloat16)
        # Half of a step more: the conversion cuts off.
        rounded = rows.mul_(step.float().reciprocal_()).add_(zero + 0.5).to(torch.uint8)
        # The scale and zero point of the activation, its weights and theirs, no bias; then those of the answer, its
        # type, and nothing after the product.
        product = _onednn.qlinear_pointwise(
            rounded, 1.0, zero, self.weight, self.scales, self.zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
        )
        return torch.addcmul(self.bias, product, step).reshape(*given.shape[:-1], -1)

    def _keep(self, **buffers: Tensor) -> None:
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)


def quantise_linears(network: nn.Module) -> None:
    """Put an Int8Linear in the place of each linear layer with a bias inside a network."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.bias is not None:
                setattr(parent, name, Int8Linear(child.weight, child.bias))
