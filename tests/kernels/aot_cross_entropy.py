"""Launches of the cross-entropy's kernel for the compile check: words and concepts as they are trained, and
in MORE every dtype, with and without gradients, for rows of awkward sizes too.
"""

import torch
from compiling import Spec

from kernels.cross_entropy.loss_triton import launch_options, loss_kernel

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def spec(dtype: torch.dtype, num_classes: int, has_classes: bool, needs_gradient: bool = True) -> Spec:
    options = launch_options(num_classes)
    arguments: dict[str, object] = {
        "logits_ptr": dtype, "targets_ptr": torch.int64 if has_classes else F32, "loss_ptr": F32,
        "agrees_ptr": torch.int32, "V": num_classes, "HAS_CLASSES": has_classes,
        "NEEDS_GRADIENT": needs_gradient, "BLOCK": options.pop("BLOCK"),
    }  # fmt: skip
    kind = "classes" if has_classes else "distributions"
    name = f"loss_kernel {str(dtype).removeprefix('torch.')} V {num_classes} {kind}"
    return Spec(loss_kernel, arguments, options, name if needs_gradient else f"{name} no gradient")


SPECS = [
    spec(BF16, 25_000, has_classes=True),
    spec(BF16, 1500, has_classes=False),
    spec(F32, 25_000, has_classes=True),
    spec(F32, 1500, has_classes=False),
    spec(BF16, 25_000, has_classes=False),
]
MORE = [
    spec(dtype, num_classes, has_classes, needs_gradient)
    for dtype in (BF16, F16, F32)
    for num_classes in (1, 131, 1500, 25_000)
    for has_classes in (True, False)
    for needs_gradient in (True, False)
]
