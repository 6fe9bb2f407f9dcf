"""A tile of scores: how entries are read from a window of distances, and how they go back."""

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from kernels.attention.tile_triton import read_columns, read_rows, spread_columns, spread_rows

BLOCK = 16
INDEX = torch.arange(BLOCK)
WINDOW_MN = INDEX[:, None] - INDEX[None, :] + BLOCK - 1
"""The row of the window that entry (m, n) needs."""


@triton.jit
def read_kernel(x_ptr, low_ptr, high_ptr, out_ptr, BY_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x, low, high = tl.load(x_ptr + place), tl.load(low_ptr + place), tl.load(high_ptr + place)
    if BY_ROWS:
        tl.store(out_ptr + place, read_rows(x, low, high, "ieee", BLOCK))
    else:
        tl.store(out_ptr + place, read_columns(low, high, x, "ieee", BLOCK))


@triton.jit
def spread_kernel(x_ptr, low_ptr, high_ptr, BY_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    if BY_ROWS:
        low, high = spread_rows(tl.load(x_ptr + place), BLOCK)
    else:
        low, high = spread_columns(tl.load(x_ptr + place), BLOCK)
    tl.store(low_ptr + place, low)
    tl.store(high_ptr + place, high)


@pytest.mark.parametrize("by_rows", [True, False])
def test_an_entry_is_a_product_with_the_row_of_its_distance(by_rows: bool, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BLOCK, BLOCK, generator=generator)
    window = torch.randn(2 * BLOCK, BLOCK, generator=generator)
    out = torch.empty(BLOCK, BLOCK, device=device)
    halves = [half.contiguous().to(device) for half in window.split(BLOCK)]
    read_kernel[(1,)](x.to(device), *halves, out, BY_ROWS=by_rows, BLOCK=BLOCK)
    other = x[:, None] if by_rows else x[None, :]  # the row of x is that of the query or that of the key
    expected = (window[WINDOW_MN].double() * other.double()).sum(-1)
    torch.testing.assert_close(out.cpu().double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("by_rows", [True, False])
def test_a_gradient_goes_back_to_the_row_of_its_distance(by_rows: bool, device: str) -> None:
    x = torch.randn(BLOCK, BLOCK, generator=torch.Generator().manual_seed(0))
    low, high = torch.empty(2, BLOCK, BLOCK, device=device)
    spread_kernel[(1,)](x.to(device), low, high, BY_ROWS=by_rows, BLOCK=BLOCK)
    if by_rows:
        expected = torch.zeros(BLOCK, 2 * BLOCK).scatter_(1, WINDOW_MN, x)
        assert torch.equal(torch.cat([low, high], 1).cpu(), expected)
    else:
        expected = torch.zeros(2 * BLOCK, BLOCK).scatter_(0, WINDOW_MN, x)
        assert torch.equal(torch.cat([low, high], 0).cpu(), expected)
