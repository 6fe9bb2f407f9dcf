"""Launches of the attention kernels for the compile check: every dtype and width of a head, on long
sequences, and with bands on short ones.

They have dropout, which needs more registers.
"""

import torch
from compiling import AMD, NVIDIA, Spec

from kernels.attention import fused_triton
from kernels.attention.attend import WIDTHS_FOR_TRITON
from kernels.attention.fused_triton import BAND_TILES, uses_bands

NUM_HEADS = 12
KERNELS = [getattr(fused_triton, f"{name}_kernel") for name in ("forward", "queries", "keys", "distances")]


def tensors(kernel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of each pointer."""
    special = {"cu_seqlens_ptr": torch.int32, "seed_ptr": torch.int64, "lse_ptr": torch.float32}
    special |= {name: torch.float32 for name in ("delta_ptr", "d_rel_k_ptr", "d_rel_q_ptr")}
    return {name: special.get(name, dtype) for name in kernel.arg_names if name.endswith("_ptr")}


def spec(
    kernel, dtype: torch.dtype, head_width: int, targets: tuple[str, ...], dropout_p: float = 0.1
) -> Spec:
    is_distances = kernel is fused_triton.distances_kernel
    precision = "tf32x3" if targets != AMD and not is_distances else "ieee"
    options = fused_triton.launch_options(kernel, dtype, head_width, 512, is_amd=targets == AMD)
    scalars: dict[str, object] = {
        "T": 16_000, "max_length": 512, "scale": 0.07, "dropout_p": dropout_p, "HAS_DROPOUT": dropout_p > 0,
        "PRECISION": precision, "H": NUM_HEADS, "E": head_width, "BLOCK": options.pop("BLOCK"),
    }  # fmt: skip
    name = f"{kernel.__name__} {str(dtype).removeprefix('torch.')} E {head_width}"
    return Spec(
        kernel,
        tensors(kernel, dtype) | scalars | ({"B": 32} if is_distances else {}),
        options,
        name if dropout_p else f"{name} no dropout",
        targets,
    )


def band_spec(dtype: torch.dtype, head_width: int, max_length: int, targets: tuple[str, ...]) -> Spec:
    options = fused_triton.band_options(max_length, is_amd=targets == AMD)
    arguments: dict[str, object] = {
        "T": 16_000, "max_length": max_length, "scale": 0.07, "dropout_p": 0.1, "HAS_DROPOUT": True,
        "PRECISION": "tf32x3" if targets != AMD else "ieee", "H": NUM_HEADS, "E": head_width,
        "BLOCK_M": options.pop("BLOCK_M"), "BLOCK_N": options.pop("BLOCK_N"),
    }  # fmt: skip
    kernel = fused_triton.band_kernel
    name = f"{kernel.__name__} {str(dtype).removeprefix('torch.')} E {head_width} L {max_length}"
    return Spec(kernel, tensors(kernel, dtype) | arguments, options, name, targets)


def band_specs(dtype: torch.dtype, head_width: int) -> list[Spec]:
    """One for each tile."""
    lengths = [length for length in BAND_TILES if uses_bands(dtype, head_width, length)]
    return [band_spec(dtype, head_width, length, on) for length in lengths for on in (NVIDIA, AMD)]


ALL = {
    (dtype, head_width): [spec(kernel, dtype, head_width, on) for kernel in KERNELS for on in (NVIDIA, AMD)]
    + band_specs(dtype, head_width)
    for dtype, head_widths in WIDTHS_FOR_TRITON.items()
    for head_width in head_widths
}
USUAL = (torch.bfloat16, 64)  # every preset trains with these; all combinations take minutes
SPECS = ALL.pop(USUAL)
SPECS += [
    spec(fused_triton.forward_kernel, *USUAL, on, dropout_p=0.0) for on in (NVIDIA, AMD)
]  # the teacher's
MORE = [spec for specs in ALL.values() for spec in specs]
