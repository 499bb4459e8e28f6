"""Products of bytes against exact ones: what rounding may cost, rows on their own, what is no number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from engines.int8 import GELU_FLOOR, Int8Linear, quantise_linears
from telme import processor

pytestmark = pytest.mark.skipif(
    not processor.multiplies_int8(), reason="torch multiplies no bytes exactly on a processor without AVX-512 and VNNI"
)
# bfloat16 has 8 bits: what an answer, a step and a bias lose at most, and the sum of them.
ROUNDED = 2**-8


def allowed(layer: Int8Linear, rows: Tensor, weight: Tensor, bias: Tensor, floor: float | None) -> Tensor:
    """The largest error [R, N] that rounding rows and weights to bytes can make, from the definition."""
    balance = torch.ones(weight.shape[1]) if floor is not None else weight.abs().amax(0).clamp_min(1e-12).sqrt()
    scaled = (rows - (floor or 0)) * balance
    levels = 127 if floor is None else 254
    step = scaled.abs().amax(-1, keepdim=True) / levels * (1 + ROUNDED)
    scale = (weight / balance).abs().amax(1).clamp_min(1e-12) / 127
    of_rows = step / 2 * (weight / balance).abs().sum(1)
    of_weights = (scaled.abs() + step / 2).sum(-1, keepdim=True) * scale / 2
    answer = (rows @ weight.T).abs() + bias.abs() + (scaled.abs() @ (weight / balance).abs().T)
    return 1.01 * (of_rows + of_weights) + 4 * ROUNDED * answer + 1e-6


@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 40)),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([1e-3, 1.0, 30.0]),
    floor=st.sampled_from([None, GELU_FLOOR]),
)
def test_an_answer_is_the_product_but_for_rounding(
    sizes: tuple[int, int, int], seed: int, spread: float, floor: float | None
) -> None:
    count, width, outputs = sizes
    noise = torch.Generator().manual_seed(seed)
    rows = spread * torch.randn(count, width, generator=noise) * torch.randn(width, generator=noise).exp()
    if floor is not None:
        rows = torch.nn.functional.gelu(rows)
    rows[0, 0] = 0
    rows = rows.bfloat16().float()
    weight = torch.randn(outputs, width, generator=noise) * torch.randn(width, generator=noise).exp()
    bias = torch.randn(outputs, generator=noise)
    layer = Int8Linear(weight, bias, floor)
    found = layer(rows.bfloat16()[None])
    assert found.shape == (1, count, outputs)
    assert found.dtype == torch.bfloat16
    error = (found[0].float() - (rows @ weight.T + bias)).abs()
    assert bool((error <= allowed(layer, rows, weight, bias, floor)).all())


def test_a_channel_that_is_large_in_the_input_and_small_in_the_weights_is_balanced() -> None:
    """Without the balance its share of the row's byte would leave the others next to nothing."""
    noise = torch.Generator().manual_seed(3)
    rows, weight = torch.randn(64, 128, generator=noise), torch.randn(32, 128, generator=noise)
    rows[:, 5] *= 1000
    weight[:, 5] /= 1000
    found = Int8Linear(weight, torch.zeros(32))(rows.bfloat16()).float()
    exact = rows.bfloat16().float() @ weight.T
    assert float((found - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("floor", [None, GELU_FLOOR])
def test_a_row_does_not_depend_on_the_others(floor: float | None) -> None:
    noise = torch.Generator().manual_seed(4)
    layer = Int8Linear(torch.randn(48, 96, generator=noise), torch.randn(48, generator=noise), floor)
    rows = torch.nn.functional.gelu(torch.randn(3, 96, generator=noise)).bfloat16()
    rows[1] *= 100
    together = layer(rows)
    for number in range(3):
        assert torch.equal(layer(rows[number : number + 1])[0], together[number])


@pytest.mark.parametrize("floor", [None, GELU_FLOOR])
def test_what_is_no_number_stays_none_and_rows_of_zeros_give_the_bias(floor: float | None) -> None:
    noise = torch.Generator().manual_seed(5)
    bias = torch.randn(8, generator=noise)
    layer = Int8Linear(torch.randn(8, 16, generator=noise), bias, floor)
    rows = torch.zeros(3, 16, dtype=torch.bfloat16)
    rows[1, 3] = torch.nan
    rows[2] = torch.inf
    found = layer(rows)
    assert found[0].float().numpy() == pytest.approx(bias.numpy(), abs=0.03)
    assert not found[1:].isfinite().any()


def test_the_input_stays_as_it_is() -> None:
    layer = Int8Linear(torch.ones(2, 4), torch.zeros(2))
    given_rows = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    layer(given_rows)
    assert given_rows.tolist() == [[1.0, -2.0, 3.0, 0.5]]


def test_linear_layers_are_replaced_where_they_are() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.GELU(), nn.Linear(4, 2)))
    network = nn.Sequential(inner, nn.Linear(2, 2, bias=False)).bfloat16()
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(6)).bfloat16()
    expected = network(rows)
    quantise_linears(network)
    kinds = [type(module).__name__ for module in network.modules()]
    assert kinds == ["Sequential", "Sequential", "Int8Linear", "Sequential", "GELU", "Int8Linear", "Linear"]
    assert network(rows).float().detach().numpy() == pytest.approx(expected.float().detach().numpy(), abs=0.05)
