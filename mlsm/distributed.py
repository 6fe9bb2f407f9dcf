"""Many processes that train one model together, on one machine or several: started by torchrun, joined by
torch.distributed. This is the only room that knows of ranks.

A process that is alone joins nothing, and every function here is then the identity. Gradients are summed once
an update, and not by DistributedDataParallel, which wants `forward` called equally often on every rank: ours
have different numbers of micro-batches, or none. The machines of a job share one file system.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
S = TypeVar("S", bound=Sequence | Tensor)

# A process that dies closes its connections and is noticed at once; this is for a machine that vanishes, and
# leaves time for what only one rank does within an update.
SILENCE = timedelta(minutes=5)
PREPARATION = timedelta(days=30)  # rank 0 may train a teacher, or another rank fine-tune, while all wait

ALONE = {"WORLD_SIZE": "1"}
"""An environment for a process of a rank that is to be alone."""

_patient: Any = None  # the group whose collectives wait for as long as PREPARATION


@contextlib.contextmanager
def job() -> Iterator[None]:
    """For a `with` block, be one of torchrun's processes, by its environment. Raises ConnectionError, here
    and in every function below, if another process ends or does not answer.
    """
    global _patient
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    with _answering():
        has_gpus = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=SILENCE)
        _patient = dist.new_group(backend="gloo", timeout=PREPARATION)
    yield
    dist.destroy_process_group()  # not after an error: it would wait for ranks that are gone


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # torchrun now ends this process with SIGTERM; it ends by itself, and has a last word to say before.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise ConnectionError(
            "another process of this job has ended or does not answer, torchrun reports which; "
            "start the job again (train.py: with --resume), or see more with --debug"
        ) from error


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is rank 0, which alone writes files and speaks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def is_mine(number: int) -> bool:
    """Whether part `number` of some work is this rank's: they are dealt out in turn."""
    return size() == 1 or number % size() == dist.get_rank()


def share(parts: S) -> S:
    """This rank's parts of some work: of a tensor, rows."""
    return cast(S, parts[dist.get_rank() :: size()]) if size() > 1 else parts


def local_rank() -> int | None:
    """The number of this process on its machine, and so of its GPU; None for a process that is alone."""
    return int(os.environ["LOCAL_RANK"]) if size() > 1 else None


def ends_first() -> bool:
    """Whether no rank has said yet why the job ends. Asking is as good as saying: it is true once."""
    if _patient is None:
        return True
    try:
        return _patient.get_group_store().add("ended", 1) == 1
    except RuntimeError:  # the store's machine is gone
        return True


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Rank 0 runs the `with` block while the others wait, and then find what it has made. Holds no other
    function of this room that ranks have to call together.
    """
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def wait() -> None:
    """Until every rank is here, for hours if need be."""
    if size() > 1:
        with _answering():
            dist.barrier(_patient)


def sum_(*tensors: Tensor) -> None:
    """Give every rank the sums over all ranks, in place."""
    if size() > 1:
        with _answering():
            for tensor in tensors:
                dist.all_reduce(tensor)


def sum_gradients_(weights: Iterable[nn.Parameter]) -> None:
    """Give every rank the sums of all gradients, as one message; a rank that had nothing to do adds zeros,
    and a weight without a gradient on any rank stays without.
    """
    if size() == 1:
        return
    weights = list(weights)
    has_gradient = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
    with _answering():
        dist.all_reduce(has_gradient, dist.ReduceOp.MAX)
    weights = [weight for weight, has in zip(weights, has_gradient.tolist(), strict=True) if has]
    flat = torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in weights])
    sum_(flat)
    for weight, gradient in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        weight.grad = gradient.view_as(weight)


def largest(value: int) -> int:
    """Of all ranks."""
    tensor = torch.tensor(value)
    if size() > 1:
        with _answering():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def gathered(value: T) -> list[T]:
    """What each rank has, by rank: small things, on the CPU."""
    values: list[Any] = [value] * size()
    if size() > 1:
        with _answering():
            dist.all_gather_object(values, value, group=_patient)
    return values


def joined(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the ranks."""
    return torch.cat(gathered(rows.cpu())).to(rows.device) if size() > 1 else rows


def agreed(value: T, what: str) -> T:
    """The value, if all ranks have the same. Raises ValueError if the ranks see different files."""
    if len(values := set(gathered(value))) > 1:
        raise ValueError(
            f"the processes of this job see different files ({what}: {', '.join(sorted(map(str, values)))}); "
            "they need a file system that all machines share"
        )
    return value


def of_first(value: T) -> T:
    """What rank 0 has: for decisions that files make, which ranks may see at different times."""
    return gathered(value)[0]
