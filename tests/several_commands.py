"""Commands one after another in one process, so that a test starts one job of torchrun for all of them:

python -m torch.distributed.run --nproc-per-node 2 several_commands.py COMMANDS.json
"""

import json
import shutil
from pathlib import Path

import torch

import evaluate
import fit_dictionary
import train
from mlsm import cli, distributed
from mlsm.evaluation.heldout import score_concepts, score_words
from mlsm.files import write_json
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.run import load_run
from mlsm.runs.teacher import teacher_of
from mlsm.text.batches import Corpus
from mlsm.training.objectives import OBJECTIVES


def heldout(flags: list[str]) -> None:
    """What evaluate.py measures of a student on held-out text, without its many minimal pairs."""
    run = load_run(Path(flags[0]))
    config, concepts = run.record.train, run.record.concepts
    assert concepts is not None
    corpus = Corpus(run.record.data, run.tokenizer)
    teacher = teacher_of(concepts, config, torch.device("cpu"))
    selection = OBJECTIVES[config.objective].selection(config.mask_share.first)
    words = score_words(run.model, corpus, 96)
    kl = score_concepts(run.model, teacher, corpus, selection, 96)
    write_json(run.directory / "heldout.json", [*words, *kl])


def forget(flags: list[str]) -> None:
    """Take away what a run wrote after its checkpoint at step 4, as if it had been stopped there."""
    if distributed.is_rank_zero():
        (Path(flags[0]) / MODEL_FILE).unlink()
        shutil.rmtree(Path(flags[0]) / "checkpoints" / "step-6")


MAINS = {
    "forget": forget,
    "train": train.main,
    "fit_dictionary": fit_dictionary.main,
    "evaluate": evaluate.main,
    "heldout": heldout,
}


def main(argv: list[str]) -> None:
    for name, *flags in json.loads(Path(argv[0]).read_text(encoding="utf-8")):
        MAINS[name](flags)


if __name__ == "__main__":
    cli.run(main)
