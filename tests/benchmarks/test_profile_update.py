"""The parts of benchmarks/profile_update.py are told apart, and add up to the whole."""

import profile_update
import pytest
import torch
from profile_update import ATTENTION, CODER, ELEMENTWISE, OPTIMIZER, PARTS, PRODUCTS, seconds_of_parts
from torch.profiler import ProfilerActivity, profile, record_function


def profiled_parts(with_attention: bool) -> tuple[dict[str, float], float]:
    x = torch.randn(64, 256, requires_grad=True)
    weight = torch.randn(256, 256, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        y = x @ weight
        if with_attention:
            y = profile_update.marked(ATTENTION, lambda z: (z @ z.mT).softmax(-1) @ z)(y)
        torch.nn.functional.gelu(y).sum().backward()
        with record_function(CODER):
            torch.randn(300, 300) @ torch.randn(300, 300)
    events = profiler.events()
    return seconds_of_parts(events), sum(event.self_cpu_time_total for event in events) / 1e6


@pytest.mark.parametrize("with_attention", [True, False])
def test_operators_belong_to_their_range_also_in_the_backward_pass(with_attention: bool) -> None:
    seconds, total = profiled_parts(with_attention)
    assert seconds.keys() == set(PARTS)
    assert sum(seconds.values()) == pytest.approx(total)
    assert min(seconds[PRODUCTS], seconds[ELEMENTWISE], seconds[CODER]) > 0
    assert (seconds[ATTENTION] > 0) is with_attention
    assert seconds[OPTIMIZER] == 0


def test_gradients_of_attention_are_not_linear_products() -> None:
    x = torch.randn(32, 32, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        profile_update.marked(ATTENTION, lambda z: z @ z)(x).backward(torch.ones(32, 32))
    assert seconds_of_parts(profiler.events())[PRODUCTS] == 0


def test_a_row_has_shares_of_the_whole() -> None:
    seconds = dict.fromkeys(PARTS, 0.0) | {PRODUCTS: 3.0, ATTENTION: 1.0}
    cells = dict(
        zip(profile_update.HEADER, profile_update.row("tiny", "off", seconds, 2.0, 8000), strict=True)
    )
    assert cells["precision"] == "float32"
    assert cells["ms of 1,000 tokens"] == "500"
    assert (cells[PRODUCTS], cells[ATTENTION]) == ("75%", "25%")
    assert cells["products at the processor's rate"] == "50%"
