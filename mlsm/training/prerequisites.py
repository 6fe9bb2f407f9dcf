"""What a run needs before it starts: a teacher, a tokenizer, a dictionary. What is missing at its default
place is made first, by the script that a user would call; what was named and is missing is an error.
"""

from __future__ import annotations

from pathlib import Path

from mlsm import cli
from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import check_coder
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.record import ConceptsRecord, RunRecord, read_record
from mlsm.runs.run import check_has_heads, load_tokenizer
from mlsm.runs.teacher import default_dictionary, find_dictionary, load_dictionary
from mlsm.settings import Flags
from mlsm.text.corpus import corpus_tokenizer
from mlsm.text.tokenizer import Tokenizer
from mlsm.training.objectives import find_objective
from mlsm.training.request import Origin, Request, Settings

TEXT_FLAGS = ("preset", "corpus", "sequence_mode", "max_length", "heldout_share", "cache_dir")
SHARED_FLAGS = (*TEXT_FLAGS, "device", "threads", "yes")  # with a teacher that is trained first


def find_origin(request: Request) -> Origin | None:
    """The origin of a run; a teacher that is missing at its default place is trained first. None for a run
    without a teacher that starts from random weights. Raises ValueError for a run that does not exist.
    """
    init, objective = request.init, request.objective
    is_run = init not in ("random", "teacher")
    if is_run and not (Path(init) / MODEL_FILE).exists():
        raise ValueError(f"no finished run at {init}; train it first, or name another with --init")
    if objective.trains_only_token_head and not is_run:
        raise ValueError(f"{request.name} needs a concept student to start from: --init runs/lsm-random, say")
    if init == "random" and not objective.needs_teacher:
        return None
    directory = Path(init)
    if objective.needs_teacher or not is_run:
        directory = find_teacher(request.teacher, request.flags)
    return Origin(directory, read_record(directory))


def find_teacher(path: Path, flags: Flags) -> Path:
    """The directory of a teacher, which is trained first if the flags do not name it. Raises ValueError for a
    teacher that was named and does not exist.
    """
    if not (path / MODEL_FILE).exists():
        if "teacher" in flags:
            raise ValueError(
                f"no teacher at {path}: --teacher takes the directory of a finished run, or of an encoder as "
                "transformers saves it"
            )
        words = ["--objective", "mlm", "--resume", *cli.pass_along(flags, *SHARED_FLAGS)]
        cli.build_first("train.py", words, f"the teacher {path}")
    return path


def find_tokenizer(settings: Settings, origin: Origin | None) -> Tokenizer:
    """The tokenizer of the run's origin, or else one of its text, which is trained if it does not exist.
    Raises ValueError if the run that gives the initial weights has another tokenizer.
    """
    if origin is None:
        return corpus_tokenizer(settings.data, settings.model.vocab_size)
    tokenizer = load_tokenizer(*origin)
    if settings.start is not None:
        record = read_record(settings.start)
        check_has_heads(settings.start, record)
        if load_tokenizer(settings.start, record).fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"cannot start from {settings.start}: it has another tokenizer, its word ids mean other words"
            )
    return tokenizer


def find_concepts(
    settings: Settings, origin: Origin | None, before: RunRecord | None
) -> tuple[ConceptsRecord | None, Dictionary | None]:
    """The concepts of a run, and the dictionary to code them with. A token head has the concepts of its
    student, and no dictionary; a run without a teacher has neither.

    The dictionary is the one that is named, or that a resumed run began with, or the default one, or the only
    one that the teacher has. It is learnt if there is none. Raises ValueError if it is of another teacher.
    """
    train, objective = settings.train, find_objective(settings.train.objective)
    if origin and objective.trains_only_token_head:
        return origin.record.concepts, None
    if origin is None or not objective.needs_teacher:
        return None, None
    began_with = before.concepts.dictionary if before and before.concepts else None
    path = Path(train.dictionary or began_with or _dictionary_of(origin, settings))
    dictionary = load_dictionary(path, origin.directory)
    check_coder(dictionary, train.coder)
    concepts = ConceptsRecord(
        objective=train.objective,
        teacher=str(origin.directory),
        teacher_fingerprint=dictionary.teacher,
        dictionary=str(path),
        dictionary_fingerprint=dictionary.fingerprint,
        layer=dictionary.layer,
        k=dictionary.atoms_DK.shape[1],
        lam=dictionary.lam,
        coder=train.coder,
    )
    return concepts, dictionary


def _dictionary_of(teacher: Origin, settings: Settings) -> Path:
    """The default dictionary of a teacher, or the only one it has; it is learnt if there is none."""
    if path := find_dictionary(teacher.directory):
        return path
    path = default_dictionary(teacher.directory)
    words = ["--teacher", str(teacher.directory), "--preset", settings.preset]
    cli.build_first(
        "fit_dictionary.py", [*words, "--device", settings.train.device], f"the dictionary {path}"
    )
    return path
