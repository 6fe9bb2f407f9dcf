"""Launches of the sparse coder's kernels for the compile check, at the paper's sizes and at the limits."""

import torch
from compiling import AMD, NVIDIA, Spec

from kernels.lasso import descent_triton, products_triton
from kernels.lasso.solve import LARGEST_FOR_TRITON

F32, I32, I64 = torch.float32, torch.int32, torch.int64

SPECS = [
    Spec(
        kernel,
        {name: I64 if name == "rows_ptr" else F32 for name in kernel.arg_names if name.endswith("_ptr")}
        | {"R": 4096, "D": 768, "K_OVER_4": 375, "PRECISION": precision, **products_triton.TILE},
        products_triton.OPTIONS,
        f"{kernel.__name__} {precision}",
        targets,
    )
    for kernel in (products_triton._residual_kernel, products_triton._direction_kernel)
    for precision, targets in (("tf32x3", NVIDIA), ("ieee", AMD))
]
SIZES = [(4, 1), (256, 384), (1500, 128), (1500, 768), (4096, 1024), (LARGEST_FOR_TRITON, 1024)]
for num_atoms, width in SIZES:
    tile = descent_triton.descend_tile(num_atoms)
    tensors = {
        name: {"rows_ptr": I64, "steps_ptr": I32, "state_ptr": I32}.get(name, F32)
        for name in descent_triton._descend_kernel.arg_names
        if name.endswith("_ptr")
    }
    scalars = {"tol": 1e-3, "descent_tol": 1e-3, "max_updates": 1_000_000, "D": width}
    blocks = {
        "K_OVER_4": num_atoms // 4,
        "CHECK_EVERY": descent_triton.CHECK_EVERY,
        "BLOCK_D": descent_triton.triton.next_power_of_2(width),
        "BLOCK_W": tile["BLOCK_W"],
        "NUM_BLOCKS": tile["NUM_BLOCKS"],
    }
    SPECS.append(
        Spec(
            descent_triton._descend_kernel,
            tensors | scalars | blocks,
            {option: tile[option] for option in ("num_warps", "num_stages")},
            f"_descend_kernel D {width} K {num_atoms}",
        )
    )
