"""Two processes do what one does, a process that dies ends its job, one goes on where two stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipeline import ROOT, close, flags_for, learnt, student_flags, wait_for
from several_commands import MAINS
from task_files import blimp_rows, write_cola, write_lines

import train
from mlsm import distributed
from mlsm.files import read_json, read_tensors
from mlsm.runs.checkpoint import MODEL_FILE


def torchrun(script: Path, *flags: str) -> subprocess.Popen[str]:
    """Two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, str(script), *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def commands(teacher: Path, data: Path, folder: Path) -> list[list[str]]:
    """Everything that is shared between processes, with its results in a folder."""
    longer = ["--num-steps=20", "--log-every=1", "--learning-rate=0.003"]
    lsm = student_flags(teacher, "lsm", folder / "lsm")
    # one update: later codes stop at another step wherever rounding decides, and move by their tolerance
    few = ["--teacher", str(teacher), "--k=24", "--num-tokens=2000", "--num-updates=1", "--batch-size=99"]
    tasks = ["--tasks=blimp,cola", f"--data={data}", "--seeds=1,2,3", "--max-epochs=1"]
    return [
        ["train", *flags_for("mlm", teacher, teacher, folder / "mlm"), *longer, "--dropout=0.1"],
        ["train", *lsm, *longer],
        # one micro-batch an update: the second process has none
        ["train", *lsm, *longer, "--token-budget=1000", f"--output={folder / 'idle'}"],
        ["fit_dictionary", *few, f"--output={folder / 'dictionary.safetensors'}"],
        ["heldout", str(folder / "lsm")],
        ["evaluate", str(folder / "mlm"), *tasks],
    ]


def test_two_processes_do_what_one_does(teacher: Path, tmp_path: Path) -> None:
    data = write_cola(tmp_path / "data", 40, 12)
    good = [f"the cat sees {thing} today" for thing in ("a boat", "the river", "two stones")]
    write_lines(data / "blimp_filtered" / "task.jsonl", blimp_rows(good, [s[::-1] for s in good]))
    one, two = tmp_path / "one", tmp_path / "two"
    (tmp_path / "commands.json").write_text(json.dumps(commands(teacher, data, two)))
    job = torchrun(ROOT / "tests" / "several_commands.py", str(tmp_path / "commands.json"))
    for script, *flags in commands(teacher, data, one):
        MAINS[script](flags)
    shown, said = job.communicate(timeout=300)
    assert job.returncode == 0, said

    for name in ("mlm", "lsm", "idle"):
        assert [line["step"] for line in learnt(one / name)] == [*range(1, 21), 20]
        assert close(learnt(one / name), learnt(two / name), 1e-5)
        weights, others = (read_tensors(folder / name / MODEL_FILE) for folder in (one, two))
        for weight in weights:
            torch.testing.assert_close(weights[weight], others[weight], atol=1e-5, rtol=1e-4)
        optimizers = (
            read_tensors(folder / name / "checkpoints/step-20/optimizer.safetensors") for folder in (one, two)
        )
        assert next(optimizers).keys() == next(optimizers).keys()  # no state of weights that are not used
    assert said.count("finished") == 3
    assert said.count("2 processes share 1 micro-batches") == 1
    atoms, others = (read_tensors(folder / "dictionary.safetensors")["atoms_DK"] for folder in (one, two))
    torch.testing.assert_close(atoms, others, atol=1e-5, rtol=0)
    assert close(*(read_json(folder / "lsm/heldout.json") for folder in (one, two)), 1e-5)
    results = [read_json(folder / "mlm/results.json") for folder in (one, two)]
    for result in results:
        del result["weights"]  # the fingerprint of weights that differ in their last bits
    assert close(*results, 1e-5)
    assert read_json(two / "mlm" / "results.json")["glue"]["cola"]["seeds"].keys() == {"1", "2", "3"}
    stored = ((folder / "mlm/evaluation/blimp/task.jsonl").read_text() for folder in (one, two))
    scores = (
        [json.loads(line) for line in text.splitlines()[1:]] for text in stored
    )  # the first has a digest
    assert close(next(scores), next(scores), 1e-4)
    assert shown.count("ties wrong") == 1


def test_a_process_without_work_runs_in_fp16(teacher: Path, tmp_path: Path) -> None:
    """Two processes have one micro-batch, before and after a resume. The loss scale starts with the first
    loss that a process scales, and one of the two scales none.
    """
    commands = {}
    for name in ("one", "two"):
        run = tmp_path / name
        flags = ["train", *flags_for("mlm", teacher, teacher, run), "--batch-size=4", "--token-budget=4096"]
        flags += ["--amp=fp16", "--device=cpu"]
        commands[name] = [flags, ["forget", str(run)], [*flags, "--resume"]]
    (tmp_path / "commands.json").write_text(json.dumps(commands["two"]))
    job = torchrun(ROOT / "tests" / "several_commands.py", str(tmp_path / "commands.json"))
    for script, *words in commands["one"]:
        MAINS[script](words)
    _, said = job.communicate(timeout=300)
    assert job.returncode == 0, said
    assert said.count("2 processes share 1 micro-batches") == 2
    assert close(learnt(tmp_path / "one"), learnt(tmp_path / "two"), 1e-3)
    one, two = (read_tensors(tmp_path / name / MODEL_FILE) for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], atol=1e-3, rtol=1e-2)


def test_a_process_that_dies_ends_the_job_and_one_process_goes_on(teacher: Path, tmp_path: Path) -> None:
    flags = [*flags_for("mlm", teacher, teacher, tmp_path / "run"), "--num-steps=120"]
    job = torchrun(ROOT / "train.py", *flags)
    train.main([*flags, f"--output={tmp_path / 'whole'}", "--checkpoint-every=120"])
    wait_for_checkpoint(job, tmp_path / "run")
    os.kill(process_of_rank(1, job.pid), signal.SIGKILL)
    _, said = job.communicate(timeout=60)
    assert job.returncode != 0
    assert said.count("error: ") == said.count("error: another process of this job has ended") == 1
    assert not (tmp_path / "run" / MODEL_FILE).exists(), "the job ended before it was killed"

    train.main([*flags, "--resume", "--checkpoint-every=120"])
    assert close(learnt(tmp_path / "whole"), learnt(tmp_path / "run"), 1e-5)


IMPATIENT = """
import time
from datetime import timedelta

import train
from mlsm import cli, distributed

distributed.HEARTBEAT_TIMEOUT, distributed.HEARTBEAT_S = timedelta(seconds=4), 0.5

def main(argv):
    if not distributed.is_rank_zero():
        time.sleep(6)  # one that works for longer is waited for
    train.main(argv)

cli.run(main)
"""


def test_a_process_that_does_not_answer_ends_the_job(teacher: Path, tmp_path: Path) -> None:
    """A stopped process leaves its connections open, as a machine does that vanishes."""
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    flags = flags_for("mlm", teacher, teacher, tmp_path / "run")
    job = torchrun(tmp_path / "impatient.py", *flags, "--num-steps=100000")
    wait_for_checkpoint(job, tmp_path / "run")
    first, stopped = (process_of_rank(rank, job.pid) for rank in (0, 1))
    os.kill(stopped, signal.SIGSTOP)
    try:
        wait_for(lambda: not lives(first))
    finally:
        os.kill(stopped, signal.SIGCONT)  # or torchrun waits half a minute for it to end
    _, said = job.communicate(timeout=60)
    assert job.returncode != 0
    assert said.count("error: ") == said.count("error: another process of this job has ended") == 1


def wait_for_checkpoint(job: subprocess.Popen, run: Path) -> None:
    wait_for(lambda: job.poll() is not None or any(run.glob("checkpoints/step-*")))
    assert job.poll() is None


def lives(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def process_of_rank(rank: int, torchrun_pid: int) -> int:
    """The number of a process of a job."""
    children = Path(f"/proc/{torchrun_pid}/task/{torchrun_pid}/children").read_text().split()
    [pid] = [
        int(child)
        for child in children
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0")
    ]
    return pid


def test_a_process_that_is_alone_joins_nothing() -> None:
    with distributed.job(pytest.fail):
        assert not torch.distributed.is_initialized()
        assert (distributed.world_size(), distributed.is_rank_zero(), distributed.local_rank()) == (
            1,
            True,
            None,
        )
        numbers = torch.arange(3.0)
        distributed.all_reduce_sum_(numbers)
        assert distributed.shard(numbers).tolist() == [0, 1, 2]
        assert distributed.all_gather(7) == [7]
        assert distributed.all_reduce_max(7) == 7
