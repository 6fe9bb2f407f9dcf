"""Training one model in many processes, on one machine or several. torchrun starts the processes, and
torch.distributed connects them. No other module knows of ranks.

In a single process every function here is the identity. Gradients are summed once per update, and not by
DistributedDataParallel: it needs `forward` to be called equally often on every rank, while here the ranks
have different numbers of micro-batches, or none. The machines of a job share one file system.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
S = TypeVar("S", bound=Sequence | Tensor)

START_TIMEOUT = timedelta(minutes=5)  # until all processes have started
COLLECTIVE_TIMEOUT = timedelta(days=30)  # one rank may train a teacher or fine-tune while the others wait
HEARTBEAT_TIMEOUT = timedelta(seconds=50)  # a process that answers no heartbeat for so long has been lost
HEARTBEAT_S = 5.0

SINGLE_PROCESS_ENVIRONMENT = {"WORLD_SIZE": "1"}
"""Environment variables for a subprocess that must not join the job."""

LOST_PROCESS = (
    "another process of this job has ended or does not answer, torchrun reports which; "
    "start the job again (train.py: with --resume), or see more with --debug"
)

_group: dist.ProcessGroup | None = None  # all ranks, once they are connected
_is_waiting = False  # whether the main thread waits for other ranks


@contextlib.contextmanager
def job(on_lost_process: Callable[[ConnectionError], None]) -> Iterator[None]:
    """Join torchrun's job for the `with` block.

    If another process ends, this function and every function below raise ConnectionError. If a machine
    vanishes with its connections open, `on_lost_process` is called from another thread within a minute and
    must end the process, because the main thread may be blocked.
    """
    global _group
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    with _collective():
        backend = "cpu:gloo,cuda:nccl" if _has_nccl() else "gloo"
        dist.init_process_group(backend, timeout=START_TIMEOUT)
        _group = dist.new_group(backend=backend, timeout=COLLECTIVE_TIMEOUT)
        heartbeat_group = dist.new_group(backend="gloo", timeout=HEARTBEAT_TIMEOUT)
    has_ended = threading.Event()
    arguments = (heartbeat_group, has_ended, on_lost_process)
    heartbeat = threading.Thread(target=_exchange_heartbeats, args=arguments, daemon=True)
    heartbeat.start()
    yield
    # After an error this is not reached: the barrier would wait for ranks that have ended.
    barrier()
    has_ended.set()
    heartbeat.join()
    dist.destroy_process_group()


def _exchange_heartbeats(
    group: dist.ProcessGroup, has_ended: threading.Event, on_lost_process: Callable[[ConnectionError], None]
) -> None:
    """All-reduce with the other ranks every few seconds until all have ended. Long computations and writes
    release the GIL, so this thread runs beside them.
    """
    num_ended = 0
    while num_ended < world_size():
        has_ended.wait(HEARTBEAT_S)
        count = torch.tensor(int(has_ended.is_set()))
        try:
            dist.all_reduce(count, group=group)
        except RuntimeError:
            break
        num_ended = int(count)
    else:
        return
    # A main thread that computes may go on: its next collective operation fails. A main thread that waits in
    # a collective operation must be ended. With NCCL it may wait wherever it reads a result of the GPU, which
    # this module cannot see.
    while True:
        time.sleep(HEARTBEAT_S)
        if _is_waiting or _has_nccl():
            on_lost_process(ConnectionError(LOST_PROCESS))


def _has_nccl() -> bool:
    return torch.cuda.is_available() and dist.is_nccl_available()


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    """Turn the RuntimeError of a collective operation whose other side is gone into ConnectionError."""
    global _is_waiting
    _is_waiting = True
    try:
        yield
    except RuntimeError as error:
        # torchrun now sends SIGTERM to this process. It is ignored, so that the error is printed first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise ConnectionError(LOST_PROCESS) from error
    finally:
        _is_waiting = False


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank_zero() -> bool:
    """Whether this is the process that writes files and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


def is_mine(number: int) -> bool:
    """Whether the piece of work with this number is this rank's; pieces are dealt out in turn."""
    return world_size() == 1 or number % world_size() == dist.get_rank()


def shard(parts: S) -> S:
    """This rank's part of a sequence, or of the rows of a tensor: every world_size-th."""
    return cast(S, parts[dist.get_rank() :: world_size()]) if world_size() > 1 else parts


def local_rank() -> int | None:
    """The number of this process on its machine, and so of its GPU; None in a single process."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else None


def claim_error_report() -> bool:
    """Whether this rank is the first that asks, and so the one that prints why the job ends."""
    if _group is None:
        return True
    try:
        return _group.get_group_store().add("ended", 1) == 1
    except RuntimeError:  # the machine of the store is gone
        return True


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the `with` block on rank 0 while the others wait, then on the others, which find its files. The
    block must not call a collective operation.
    """
    if not is_rank_zero():
        barrier()
    yield
    if is_rank_zero():
        barrier()


def barrier() -> None:
    """Wait until every rank has called this function."""
    if world_size() > 1:
        with _collective():
            dist.all_reduce(torch.zeros(()), group=_group)


def all_reduce_sum_(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all ranks."""
    if world_size() > 1:
        with _collective():
            for tensor in tensors:
                dist.all_reduce(tensor, group=_group)
            if any(tensor.is_cuda for tensor in tensors):
                torch.cuda.synchronize()  # a rank that does not answer is noticed here


def sum_gradients_(weights: Iterable[nn.Parameter]) -> None:
    """Replace all gradients by their sums over all ranks, in one message. A rank without micro-batches adds
    zeros; a weight that has no gradient on any rank stays without.
    """
    if world_size() == 1:
        return
    weights = list(weights)
    has_gradient = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
    with _collective():
        dist.all_reduce(has_gradient, dist.ReduceOp.MAX, group=_group)
    weights = [weight for weight, has in zip(weights, has_gradient.tolist(), strict=True) if has]
    flat = torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in weights])
    all_reduce_sum_(flat)
    for weight, gradient in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        weight.grad = gradient.view_as(weight)


def all_reduce_max(value: int) -> int:
    """The largest value of all ranks."""
    tensor = torch.tensor(value)
    if world_size() > 1:
        with _collective():
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_group)
    return int(tensor)


def all_gather(value: T) -> list[T]:
    """The values of all ranks, by rank: small objects, on the CPU."""
    values = [value] * world_size()
    if world_size() > 1:
        with _collective():
            dist.all_gather_object(values, value, group=_group)
    return values


def all_gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the ranks."""
    return torch.cat(all_gather(rows.cpu())).to(rows.device) if world_size() > 1 else rows


def equal_on_all_ranks(value: T, what: str) -> T:
    """The value, which must be the same on all ranks. Raises ValueError if the ranks see different files."""
    if len(values := set(all_gather(value))) > 1:
        raise ValueError(
            f"the processes of this job see different files ({what}: {', '.join(sorted(map(str, values)))}); "
            "they need a file system that all machines share"
        )
    return value


def broadcast_from_zero(value: T) -> T:
    """The value of rank 0, for decisions that depend on files, which ranks may see at different times."""
    return all_gather(value)[0]
