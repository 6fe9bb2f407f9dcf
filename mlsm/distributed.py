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
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
S = TypeVar("S", bound=Sequence | Tensor)

MEETING = timedelta(minutes=5)  # until all processes have started
PATIENCE = timedelta(days=30)  # rank 0 may train a teacher, or another rank fine-tune, while all wait
SILENCE = timedelta(seconds=50)  # a process that does not answer a beat for so long is gone
BEAT_S = 5.0

ALONE = {"WORLD_SIZE": "1"}
"""An environment for a process of a rank that is to be alone."""

LOST = (
    "another process of this job has ended or does not answer, torchrun reports which; "
    "start the job again (train.py: with --resume), or see more with --debug"
)

_group: Any = None  # all ranks, once they have met
_is_waiting = False  # the main thread, for other ranks


@contextlib.contextmanager
def job(give_up: Callable[[ConnectionError], None]) -> Iterator[None]:
    """Join torchrun's job for the `with` block. If another process ends, this and every function below raises
    ConnectionError. If a machine vanishes with its connections open, `give_up` is called from another thread
    within a minute and must end the process, because the main thread may be blocked.
    """
    global _group
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    with _answering():
        backend = "cpu:gloo,cuda:nccl" if _has_nccl() else "gloo"
        dist.init_process_group(backend, timeout=MEETING)
        _group = dist.new_group(backend=backend, timeout=PATIENCE)
        pulse = dist.new_group(backend="gloo", timeout=SILENCE)
    has_ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(pulse, has_ended, give_up), daemon=True)
    heart.start()
    yield
    # Not after an error: it would wait for ranks that are gone.
    wait()
    has_ended.set()
    heart.join()
    dist.destroy_process_group()


def _beat(pulse: Any, has_ended: threading.Event, give_up: Callable[[ConnectionError], None]) -> None:
    """Heartbeat: all-reduce with the other ranks every few seconds until all have ended. Long computations
    and writes release the GIL, so this thread keeps beating.
    """
    num_ended = 0
    while num_ended < size():
        has_ended.wait(BEAT_S)
        count = torch.tensor(int(has_ended.is_set()))
        try:
            dist.all_reduce(count, group=pulse)
        except RuntimeError:
            break
        num_ended = int(count)
    else:
        return
    # A main thread that works may finish what it does; one that waits hears of connections that are closed.
    # With NCCL it waits wherever it reads a result of the GPU, which is not seen here.
    while True:
        time.sleep(BEAT_S)
        if _is_waiting or _has_nccl():
            give_up(ConnectionError(LOST))


def _has_nccl() -> bool:
    return torch.cuda.is_available() and dist.is_nccl_available()


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    global _is_waiting
    _is_waiting = True
    try:
        yield
    except RuntimeError as error:
        # torchrun now ends this process with SIGTERM; it ends by itself, and has a last word to say before.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise ConnectionError(LOST) from error
    finally:
        _is_waiting = False


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
    """Claim the right to say why the job ends: True for the first caller only."""
    if _group is None:
        return True
    try:
        return _group.get_group_store().add("ended", 1) == 1
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
    """Until every rank is here."""
    if size() > 1:
        with _answering():
            dist.all_reduce(torch.zeros(()), group=_group)


def sum_(*tensors: Tensor) -> None:
    """Give every rank the sums over all ranks, in place."""
    if size() > 1:
        with _answering():
            for tensor in tensors:
                dist.all_reduce(tensor, group=_group)
            if any(tensor.is_cuda for tensor in tensors):
                torch.cuda.synchronize()  # here, where it is noticed if no answer comes


def sum_gradients_(weights: Iterable[nn.Parameter]) -> None:
    """Give every rank the sums of all gradients, as one message; a rank that had nothing to do adds zeros,
    and a weight without a gradient on any rank stays without.
    """
    if size() == 1:
        return
    weights = list(weights)
    has_gradient = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
    with _answering():
        dist.all_reduce(has_gradient, dist.ReduceOp.MAX, group=_group)
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
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_group)
    return int(tensor)


def gathered(value: T) -> list[T]:
    """What each rank has, by rank: small things, on the CPU."""
    values: list[Any] = [value] * size()
    if size() > 1:
        with _answering():
            dist.all_gather_object(values, value, group=_group)
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
