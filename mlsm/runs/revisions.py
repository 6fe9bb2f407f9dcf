"""The checkpoints of a run by words seen, under the names that the BabyLM challenge asks for: `main` is the
finished model, `chck_10M` the model after 10M words, and `chck_0M` the untrained one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlsm.files import folder_within
from mlsm.log import read_metrics
from mlsm.runs.checkpoint import MODEL_FILE, read_state, shortened, words_name

MAIN = "main"
# The share of the last checkpoint's words that the finished model may lack to stand for it. Ten epochs of a
# corpus of 10M words see less than 100M, because a part of the text is held out.
SHORTFALL = 0.05


class Revision(NamedTuple):
    """A model of a run."""

    name: str  # of the branch in a repository
    words: int  # that the model is called after; of `main`, those it has seen
    directory: Path


def revision_name(words: int) -> str:
    """The name of the model after this many words, as the organisers' programs ask for it."""
    return f"chck_{shortened(words)}"


def find_revisions(run: Path, word_counts: Sequence[int]) -> list[Revision]:
    """The finished model of a run, and its models after these numbers of words.

    Raises ValueError naming the models that the run does not have, or a damaged one. The finished model
    stands for the last number of words if it has seen at least 95 % of them.
    """
    if not (run / MODEL_FILE).exists():
        raise ValueError(f"{run} is not finished: continue it with --resume")
    found = [_main(run)]
    missing = []
    for words in word_counts:
        directory = run / "checkpoints" / words_name(words)
        if (directory / MODEL_FILE).exists():
            read_state(directory)
            found.append(Revision(revision_name(words), words, directory))
        elif words == max(word_counts) and (1 - SHORTFALL) * words <= found[0].words < words:
            found.append(Revision(revision_name(words), words, run))
        else:
            missing.append(revision_name(words))
    if missing:
        raise ValueError(
            f"{run} has seen {found[0].words:,} words and has no model for {', '.join(missing)}: train with "
            "--checkpoint-words TRACK, or name the words of the models that it has"
        )
    return found


def kept_revisions(run: Path) -> list[Revision]:
    """All models that a run has kept by words seen, the earliest first, and then the finished one."""
    names = [path.parent.name for path in folder_within(run, "checkpoints").glob(f"words-*/{MODEL_FILE}")]
    parts = [match for name in names if (match := re.fullmatch(r"words-(\d{1,18})(M?)", name))]
    counts = sorted(int(part[1]) * (1_000_000 if part[2] else 1) for part in parts)
    main, *kept = find_revisions(run, counts)
    return [*kept, main]


def _main(run: Path) -> Revision:
    """The finished model. A run that was not trained here has no metrics, and 0 words."""
    words = [int(line["words_seen"]) for line in read_metrics(run) if "words_seen" in line]
    return Revision(MAIN, words[-1] if words else 0, run)


def upload_script(revisions: Sequence[Revision]) -> str:
    """A shell script that uploads the directory of each revision, which lies beside the script, as a branch.

    `main` is the last one, so that a repository with a finished model has all its checkpoints.
    """
    names = [revision.name for revision in revisions if revision.name != MAIN]
    return (
        "#!/bin/sh\n"
        "# Uploads each directory beside this script as a branch of a repository: sh upload.sh USER/NAME\n"
        "# Log in before with `hf auth login` (older versions of huggingface_hub: `huggingface-cli login`).\n"
        "set -eu\n"
        'repository="$1"\n'
        'cd "$(dirname "$0")"\n'
        "if command -v hf > /dev/null; then tool=hf; else tool=huggingface-cli; fi\n"
        + "".join(f'"$tool" upload "$repository" {name} . --revision {name}\n' for name in (*names, MAIN))
    )
