"""Training beside a busy program: numbers of threads, and ways in which they wait for each other.

    PYTHONPATH=. python benchmarks/bench_threads.py       writes results/threads.md

Each setting is a process that trains a masked LM of the preset `tiny`. The processes take turns: in each turn
one of them makes updates for some seconds while the others sleep. A round has a turn of every setting on the
machine as it is, and one beside a program that keeps a processor busy. What all other programs used in the
turns is measured and stands in the table, because a machine that others use says little.

"Watched" is what the commands of this project do (mlsm/waiting.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import result_page
import torch

from mlsm.config import tiny
from mlsm.model.language_model import LanguageModel
from mlsm.text.batches import Corpus, Selection
from mlsm.text.corpus import corpus_tokenizer
from mlsm.threads import busy_seconds
from mlsm.training.objectives import OBJECTIVES
from mlsm.training.optim import make_optimizers, step_
from mlsm.waiting import SETTINGS_OF_WAITING, watch

SIZES = (8, 64)  # sequences of an update: of the preset, and of a larger one
SECONDS_TO_NOTICE = 2.5  # the watcher looks every second
NUM_PREPARED = 50  # updates
BUSY = "import os\nwhile os.getppid() == {}: pass"


class Setting(NamedTuple):
    """A number of threads, and what the environment of the process says of waiting."""

    name: str
    num_threads: int
    environment: dict[str, str]
    is_watched: bool = False


def settings(num_threads: int) -> list[Setting]:
    """One thread first, which all others are compared with."""
    waits = {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}
    waits |= {f"{n:,} spins": {"GOMP_SPINCOUNT": str(n)} for n in (1000, 3000, 10_000, 30_000)}
    several = [Setting(f"{num_threads} threads, {name}", num_threads, e) for name, e in waits.items()]
    return [
        Setting("1 thread", 1, {}),
        Setting(f"{num_threads} threads, watched", num_threads, {}, is_watched=True),
        *several,
    ]


class Turn(NamedTuple):
    """What a setting did in a turn."""

    tokens_per_s: float
    processors: float  # that it used
    others: float  # processors that programs used which are not of the benchmark


class Worker:
    """A process that trains in turns."""

    def __init__(self, setting: Setting, size: int) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in SETTINGS_OF_WAITING}
        environment |= {"OMP_NUM_THREADS": str(setting.num_threads), **setting.environment}
        command = [sys.executable, __file__, "--train", str(size), *["--watched"] * setting.is_watched]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> list[float]:
        """The next line of the process."""
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def turn(self, seconds: float, busy_pids: list[int]) -> Turn:
        """Let it train for so many seconds, or for one update if that takes longer."""
        assert self.process.stdin
        pids = [self.process.pid, os.getpid(), *busy_pids]
        before, used = busy_seconds(), sum(map(_seconds_of, pids))
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        tokens_per_s, processors = self.answer()
        now, ours = busy_seconds(), sum(map(_seconds_of, pids)) - used
        assert before
        assert now
        others = (now.all - before.all - ours) / (now.time - before.time)
        return Turn(tokens_per_s, processors, max(0.0, others))

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def _seconds_of(pid: int) -> float:
    """The processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def busy_program() -> Iterator[list[int]]:
    """A program that keeps a processor busy; its process id."""
    process = subprocess.Popen([sys.executable, "-c", BUSY.format(os.getpid())])
    try:
        yield [process.pid]
    finally:
        process.kill()
        process.wait()


def train(size: int, orders: IO[str], *, is_watched: bool) -> None:
    """Train while orders come: each is a number of seconds, which tokens a second and processors answer."""
    preset = tiny()
    tokenizer = corpus_tokenizer(preset.data, preset.model.vocab_size)
    corpus = Corpus(preset.data, tokenizer)
    model, config = LanguageModel(preset.model, seed=0).train(), preset.teacher
    optimizers, scaler = make_optimizers(model, config), torch.amp.GradScaler("cpu", enabled=False)
    selection = Selection(config.mask_share.first, is_masked=True)
    updates = [corpus.update(n, size, config.token_budget, selection, 0) for n in range(NUM_PREPARED)]
    done = 0
    if is_watched:
        watch(torch.get_num_threads())

    def make_update() -> int:
        nonlocal done
        update = updates[done % NUM_PREPARED]
        for micro in update.micro_batches:
            loss = OBJECTIVES["mlm"].loss(model, micro, None, config).loss
            (loss / update.num_selected).backward()
        step_(optimizers, scaler, config.clip_norm)
        done += 1
        return update.num_tokens

    make_update()
    print("[]", flush=True)
    for order in orders:
        start, start_processor, num_tokens = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < float(order):
            num_tokens += make_update()
        seconds = time.perf_counter() - start
        print([num_tokens / seconds, (time.process_time() - start_processor) / seconds], flush=True)


def measure(size: int, args: argparse.Namespace) -> dict[tuple[str, bool], list[Turn]]:
    """The turns of every setting, with and without a busy program."""
    chosen = [s for s in settings(args.threads) if not args.only or any(w in s.name for w in args.only)]
    workers = {setting.name: Worker(setting, size) for setting in chosen}
    watched = {setting.name for setting in chosen if setting.is_watched}
    turns: dict[tuple[str, bool], list[Turn]] = {}
    try:
        for worker in workers.values():
            worker.answer()
        for number in range(args.rounds):
            names = list(workers) if number % 2 == 0 else list(workers)[::-1]
            for is_busy in (False, True):
                with busy_program() if is_busy else contextlib.nullcontext([]) as pids:
                    for name in names:
                        if name in watched:
                            time.sleep(SECONDS_TO_NOTICE)  # that the turn of another setting is over
                        turns.setdefault((name, is_busy), []).append(workers[name].turn(args.seconds, pids))
                        _quiet(f"{size} sequences, busy {is_busy}, {name}: {turns[name, is_busy][-1]}")
    finally:
        for worker in workers.values():
            worker.end()
    return turns


def _table(turns: dict[tuple[str, bool], list[Turn]]) -> str:
    medians = {
        key: Turn(*(statistics.median(values) for values in zip(*listed, strict=True)))
        for key, listed in turns.items()
    }
    one = medians["1 thread", False].tokens_per_s
    header = ["setting"]
    for where in ("quiet", "busy"):
        header += [f"tokens/s, {where}", f"x one thread quiet, {where}", f"others, {where}"]
    rows = []
    for name in dict.fromkeys(name for name, _ in medians):
        row = [name]
        for is_busy in (False, True):
            median = medians[name, is_busy]
            row += [f"{median.tokens_per_s:,.0f}", f"{median.tokens_per_s / one:.2f}", f"{median.others:.2f}"]
        rows.append(row)
    return result_page.table(header, rows)


def _text(args: argparse.Namespace, blocks: list[str]) -> str:
    command = "PYTHONPATH=. " + shlex.join(["python", "benchmarks/bench_threads.py", *sys.argv[1:]])
    return f"""# Threads beside a busy program

Written by the command below: masked LM of the preset `tiny` on the embedded corpus, forward, backward and
AdamW; medians of {args.rounds} turns of {args.seconds:g} seconds. "Busy" is beside a program that computes
all the time in one thread. "Others" is the number of processors that programs used which are not of the
benchmark. Spins are those of GOMP_SPINCOUNT, and passive is OMP_WAIT_POLICY=passive. "Watched" waits as by
default, and almost as if passive while the machine is crowded (`mlsm/waiting.py`); its turns begin when it
has had the time to notice. Commands do that; those that start beside the busy program take one thread.
{args.note}

{result_page.circumstances(command)}

{chr(10).join(block + chr(10) for block in blocks)}"""


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="(default: one per processor)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each setting (default: 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn (default: 2)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sequences of an update")
    parser.add_argument("--only", nargs="+", help="settings whose names have one of these words")
    parser.add_argument("--note", default="", help="a sentence about the machine, for the page")
    parser.add_argument("--train", type=int, help=argparse.SUPPRESS)  # in a process that trains: the size
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = flags().parse_args()
    if args.train:
        train(args.train, sys.stdin, is_watched=args.watched)
        return
    blocks = []
    for size in args.sizes:
        blocks.append(f"## Updates of {size} sequences\n\n" + _table(measure(size, args)))
        _quiet(blocks[-1])
    if not args.only:
        result_page.write("threads.md", _text(args, blocks))


def _quiet(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
