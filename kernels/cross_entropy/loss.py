"""`cross_entropy_`: it checks the arguments and runs the implementation that fits.

Legend: N rows, V classes.
"""

import torch
from torch import Tensor

from kernels.backend import Candidate, choose, triton_obstacle
from kernels.cross_entropy.reference import cross_entropy_ as reference_cross_entropy_

DTYPES_FOR_TRITON = (torch.float32, torch.float16, torch.bfloat16)


def cross_entropy_(
    logits_NV: Tensor,
    targets: Tensor,
    total: Tensor,
    num_agreeing: Tensor,
    needs_gradient: bool,
    *,
    implementation: str = "auto",
) -> None:
    """Add KL(target || softmax(logits)) of all rows to `total`, in nats, and the number of rows whose target
    and logits have the same most probable class to `num_agreeing`. Of equal classes the first one counts.

    Targets are classes (N,) or distributions (N, V). For a class this is the cross-entropy. A target of zeros
    adds nothing, agrees with nothing, and has a gradient of zeros. If `needs_gradient`, the contiguous logits
    are replaced by the gradient of the sum, softmax(logits) - target, in their dtype. The fused kernel
    computes in float32, the reference in the dtype of the logits. Raises ValueError on shapes that do not fit
    together, on logits that are not contiguous, and on an implementation that is unknown or cannot run here.
    """
    shapes = [logits_NV.shape[:1], logits_NV.shape]
    if logits_NV.ndim != 2 or targets.shape not in shapes:
        raise ValueError(
            f"logits must be (rows, classes) and targets (rows) or (rows, classes), got "
            f"{tuple(logits_NV.shape)}, {tuple(targets.shape)}"
        )
    if not logits_NV.is_contiguous():
        raise ValueError("logits must be contiguous: call .contiguous() on them")
    if _choice(implementation, logits_NV.device, logits_NV.dtype) == "triton":
        # Imported here, so that a machine without triton can import this module.
        from kernels.cross_entropy.loss_triton import cross_entropy_ as compute_
    else:
        compute_ = reference_cross_entropy_
    compute_(logits_NV, targets, total, num_agreeing, needs_gradient)


def is_fused(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether "auto" runs the fused kernel, which computes in float32 whatever the dtype of the logits."""
    return _choice("auto", device, dtype) == "triton"


def _choice(wanted: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the implementation to run."""

    def obstacle() -> str | None:
        if dtype not in DTYPES_FOR_TRITON:
            return f"it is for {', '.join(map(str, DTYPES_FOR_TRITON))}, not for {dtype}"
        return triton_obstacle(device)

    triton = Candidate("triton", "one kernel that replaces logits by gradients", obstacle)
    reference = Candidate("reference", "the definition", lambda: None)
    candidates = [triton, reference] if device.type == "cuda" else [reference, triton]
    return choose("cross_entropy", candidates, wanted)
