"""The model of a GPU's time: what it reads, what binds, and the number of updates that it assumes."""

import pytest
import torch
from step_model import GPUS, Counts, coder_time, count_updates, counts

from kernels.lasso import nonneg_lasso

PAGE = """text
| kernel | target | programs | warps | instructions |
| --- | --- | ---: | ---: | ---: |
| a kernel | sm80 | 8 | 1 | 440 |
| a kernel | sm90 | 3 | 4 | 500 |
"""


def test_counts_are_read_from_the_table() -> None:
    assert counts("a kernel", "sm90", PAGE) == Counts(3, 4, 500)
    with pytest.raises(ValueError, match=r"no row of another on sm90"):
        counts("another", "sm90", PAGE)


def test_the_committed_table_gives_the_rate_that_the_documents_name() -> None:
    time = coder_time(GPUS["H100"], counts("_descend_kernel D 768 K 1500", "sm90"))
    assert time.updates == time.cache
    assert 1 / time.total > 2.9e6


@pytest.mark.parametrize(
    ("descent", "binds"),
    [(Counts(8, 1, 440), "cache"), (Counts(8, 4, 440), "issue"), (Counts(2, 1, 440), "latency")],
)
def test_the_slowest_of_three_bounds_binds(descent: Counts, binds: str) -> None:
    time = coder_time(GPUS["H100"], descent)
    assert time.updates == max(time.issue, time.cache, time.latency) == getattr(time, binds)


def test_updates_are_counted_as_the_solver_makes_them() -> None:
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(0)
    signals_ND, dictionary_DK = (
        torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=dim)
        for shape, dim in (((4, 16), 1), ((16, 40), 0))
    )
    num_updates_N = count_updates(signals_ND, dictionary_DK, lam=0.1, tol=1e-3)
    solved = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="triton")
    assert num_updates_N.int().tolist() == solved.steps_N.tolist()
