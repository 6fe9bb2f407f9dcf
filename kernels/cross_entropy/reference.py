"""Cross-entropy of rows of logits in plain PyTorch, in the dtype of the logits. The fused kernel is tested
against it.

Legend: N rows, V classes.
"""

import torch
from torch import Tensor


def cross_entropy_(
    logits_NV: Tensor, targets: Tensor, total: Tensor, num_agreeing: Tensor, needs_gradient: bool
) -> None:
    """Add KL(target || softmax(logits)) of all rows to `total`, in nats, and the number of rows whose target
    and logits have the same most probable class to `num_agreeing`.

    If `needs_gradient`, the logits are replaced by the gradient of the sum, softmax(logits) - target. Targets
    are classes (N,) or distributions (N, V). A target of zeros adds nothing and has a gradient of zeros.
    """
    log_partition_N = logits_NV.logsumexp(-1)
    top_N = logits_NV.argmax(-1)
    if targets.ndim == 1:
        num_agreeing += (top_N == targets).sum()
        total += (log_partition_N - logits_NV.gather(1, targets[:, None]).squeeze(1)).sum()
    else:
        mass_N = targets.sum(-1)
        num_agreeing += ((top_N == targets.argmax(-1)) & (mass_N > 0)).sum()
        total += torch.xlogy(targets, targets).sum() - torch.sum(targets * logits_NV)
        total += torch.dot(mass_N, log_partition_N)
    if not needs_gradient:
        return
    logits_NV.sub_(log_partition_N[:, None]).exp_()
    if targets.ndim == 1:
        logits_NV[torch.arange(len(targets), device=targets.device), targets] -= 1
    else:
        logits_NV.mul_(mass_N[:, None]).sub_(targets)
