"""A model of how long the sparse coder takes on a GPU. It is no measurement.

    python benchmarks/step_model.py                  the sparse coder's rate on an H100, and what bounds it
    python benchmarks/step_model.py --count-updates  the number of updates for each signal, on real signals

It takes the instructions counted in compiled code (results/gpu-counts.md), the rates of the GPU, and
assumptions, each of which is a named constant here.

Shape suffixes: N signals, D their dimension, K atoms, R signals that are not solved yet.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

COUNTS = Path(__file__).resolve().parents[1] / "results" / "gpu-counts.md"


class Gpu(NamedTuple):
    target: str
    """The name of the architecture in results/gpu-counts.md."""
    multiprocessors: int
    clock_hz: float
    """The clock that NVIDIA calls boost."""
    memory_bytes: float
    """Bytes a second from memory."""
    cache_bytes: float
    """Bytes a second from the L2 cache."""
    tf32_flop: float
    """Operations a second of dense matrix products in tf32."""


# Multiprocessors, clock, memory and tensor cores from NVIDIA's data sheets (SXM). It publishes no rate of the
# L2: these are of the size that microbenchmarks report.
GPUS = {
    "H100": Gpu("sm90", 132, 1.755e9, 3.35e12, 5.5e12, 495e12),
    "A100": Gpu("sm80", 108, 1.41e9, 2.0e12, 4.5e12, 156e12),
}

WARPS_AT_ONCE = 4
"""Warps that a multiprocessor can issue an instruction for in each clock, one in each of its partitions."""
CLOCKS_PER_INSTRUCTION = 1.4
"""The mean of a descent. 70 % of its instructions compare, select or take a maximum, at half the rate of
others (CUDA C++ Programming Guide 13, "Throughput of Native Arithmetic Instructions")."""
CLOCKS_OF_AN_UPDATE = 1_500
"""From one update of a signal to its next, an estimate: 440 instructions of one warp, three reductions, and a
row of the Gram matrix from the L2, one after another."""
SHARE_OF_TENSOR_CORES = 0.5
"""The share of their peak rate that the coder's two products reach."""
NUM_TF32_PRODUCTS = 3
"""Products in tf32 that make one of the accuracy of float32."""
FLOATS_PER_DIMENSION, FLOATS_PER_ATOM = 11, 11
"""Numbers that a signal moves to or from memory, for each dimension of a signal and for each atom: signals,
residuals, c and codes, in two passes with the residual between them, and the scaling of signals and codes."""
NUM_UPDATES = 199
"""Updates for each signal at D 768, K 1500, lambda 0.05, tol 1e-3, the mean over 1,024 real signals; counted
with --count-updates. (The coder for CPUs, which updates a working set, needs 257 cheaper ones.)"""
SIGNALS_OF_AN_UPDATE = 26_600
"""Selected tokens of an LSM update of 1,024 pairs of lines."""


class Counts(NamedTuple):
    programs: int
    """How many programs one multiprocessor runs at a time."""
    warps: int
    instructions: int


class CoderTime(NamedTuple):
    """Seconds for each signal."""

    issue: float
    """What the updates take if instructions bind."""
    cache: float
    """What they take if reading the rows of the Gram matrix binds."""
    latency: float
    """What they take if the programs that fit on a multiprocessor are too few."""
    products: float
    memory: float

    @property
    def updates(self) -> float:
        return max(self.issue, self.cache, self.latency)

    @property
    def total(self) -> float:
        return self.updates + self.products + self.memory


def counts(kernel: str, target: str, page: str | None = None) -> Counts:
    """A row of the table of counts. Raises ValueError if it has none of this kernel and target."""
    lines = (COUNTS.read_text() if page is None else page).splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("|")]
    names = rows[0]
    for row in rows[2:]:
        cells = dict(zip(names, row, strict=True))
        if (cells["kernel"], cells["target"]) == (kernel, target):
            return Counts(int(cells["programs"]), int(cells["warps"]), int(cells["instructions"]))
    raise ValueError(
        f"{COUNTS.name} has no row of {kernel} on {target}: write it anew with tests/kernels/aot.py"
    )


def coder_time(
    gpu: Gpu,
    descent: Counts,
    width: int = 768,
    num_atoms: int = 1500,
    num_updates: float = NUM_UPDATES,
) -> CoderTime:
    """The time of the sparse coder for each signal of a large batch."""
    clocks = gpu.multiprocessors * gpu.clock_hz
    issued = descent.instructions * descent.warps * CLOCKS_PER_INSTRUCTION / WARPS_AT_ONCE
    flop = 3 * 2 * width * num_atoms * NUM_TF32_PRODUCTS  # c, the residual, c again
    floats = FLOATS_PER_DIMENSION * width + FLOATS_PER_ATOM * num_atoms
    return CoderTime(
        issue=num_updates * issued / clocks,
        cache=num_updates * 4 * num_atoms / gpu.cache_bytes,
        latency=num_updates * CLOCKS_OF_AN_UPDATE / (clocks * descent.programs),
        products=flop / (SHARE_OF_TENSOR_CORES * gpu.tf32_flop),
        memory=4 * floats / gpu.memory_bytes,
    )


def count_updates(signals_ND: Tensor, dictionary_DK: Tensor, lam: float, tol: float) -> Tensor:
    """The number of updates (N,) that the GPU's solver makes for each signal, in PyTorch."""
    from kernels.lasso.descent_triton import CHECK_EVERY
    from kernels.lasso.reference import MARGIN, duality_gap, gram

    gram_KK = gram(dictionary_DK)
    diagonal_K = gram_KK.diagonal()
    num_updates_N = torch.zeros(len(signals_ND))
    rows_R = torch.arange(len(signals_ND))
    c_RK = signals_ND @ dictionary_DK - lam
    codes_RK = torch.zeros_like(c_RK)
    while len(rows_R):
        for _ in range(CHECK_EVERY):
            violation_RK = torch.maximum(c_RK, -codes_RK * diagonal_K)
            atom_R = violation_RK.abs().argmax(dim=1)
            change_R = violation_RK.gather(1, atom_R[:, None])[:, 0] / diagonal_K[atom_R]
            codes_RK.scatter_add_(1, atom_R[:, None], change_R[:, None])
            c_RK -= change_R[:, None] * gram_KK[atom_R]
        num_updates_N[rows_R] += CHECK_EVERY
        open_ND, lam_R = signals_ND[rows_R], torch.full((len(rows_R),), lam)
        gap_R = duality_gap(open_ND, dictionary_DK, lam_R, codes_RK.clamp_min(0))
        is_open_R = gap_R > MARGIN * MARGIN * tol * 0.5 * open_ND.square().sum(dim=1)
        rows_R, c_RK, codes_RK = rows_R[is_open_R], c_RK[is_open_R], codes_RK[is_open_R]
    return num_updates_N


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count-updates", action="store_true", help="count the updates of real signals")
    if parser.parse_args().count_updates:
        from signals import coding_problem

        signals_ND, dictionary_DK, _, _ = coding_problem(768, 1500, 1024)
        num_updates_N = count_updates(signals_ND, dictionary_DK, lam=0.05, tol=1e-3)
        mean, last, most = num_updates_N.mean(), num_updates_N.quantile(0.99), num_updates_N.max()
        print(f"updates for each signal: mean {mean:.0f}, 99 % need at most {last:.0f}, most {most:.0f}")
        return
    time = coder_time(GPUS["H100"], counts("_descend_kernel D 768 K 1500", "sm90"))
    for name, seconds in (*time._asdict().items(), ("all", time.total)):
        print(f"{name:<10} {1e9 * seconds:6.0f} ns a signal")
    print(f"{NUM_UPDATES / time.updates / 1e6:.0f}M updates/s, {1e-6 / time.total:.2f}M signals/s")
    milliseconds = 1e3 * SIGNALS_OF_AN_UPDATE * time.total
    print(f"{milliseconds:.1f} ms for the {SIGNALS_OF_AN_UPDATE:,} signals of a training update")


if __name__ == "__main__":
    main()
