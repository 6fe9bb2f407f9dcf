"""Damaged and hostile files: every reader takes them, or refuses them with one line.

    PYTHONPATH=. python tests/fuzz.py --cases 10000                           every format; 1 if a case failed
    PYTHONPATH=. python tests/fuzz.py --formats config --first 17 --cases 1   one case again

A case is a pure function of (seed, format, number): a good file is damaged and read as the scripts read it. A
case fails by any exception that the command line would not turn into its one line, by a crash, by taking
longer than a deadline or more memory than a limit, by starting a program, and by writing outside its folder.
Cases run in a process of their own, which is started anew where one of them ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import hashlib
import io
import json
import math
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

DEADLINE_S = 60.0  # of a case; the slowest takes a second when nothing else runs
STARTING_S = 600.0  # of a worker
MEMORY_BYTES = 3 << 30  # of address space, beyond what the libraries take
LONGEST_MESSAGE = 1000  # characters of the one line

# ---- damage to bytes

ODD_BYTES = [
    b"\0",
    b"\xff\xff\xff\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\r\n\r",
    b"\xe2\x80\xa8",
    b"\n",
    b"\x80",
]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, a part removed, doubled or moved, or something odd put in."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at, other = (draw.randrange(len(data) + 1) for _ in range(2))
        size = min(draw.choice((1, 2, 8, 60, 1000)), len(data))
        kind = draw.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = draw.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[other : other + size]
        elif kind == 5:
            data[at : at + size] = data[other : other + size]
        else:
            data[at:at] = draw.choice(ODD_BYTES) * draw.choice((1, 1, 50))
    return bytes(data)


# ---- damage to JSON

DEEP = "a deep nest stands here"
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 1e-300, 1.5, 1e300, float("inf"), float("nan"), 10**9, 2**31, 2**63,
    10**30, 10**400, "", "x", "\ud800", "\0", "/nowhere/at/all", "../../escaped", "a" * 5000, "é" * 300,
    [], {}, [[]], [None], {"": None}, ["a", 1], DEEP,
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from places(child)


def damaged_json(text: str, draw: random.Random) -> str:
    """Another value, a field less, more, renamed or doubled; numbers and texts that nobody expects."""
    root = [json.loads(text)]
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        container, key = draw.choice(list(places(root)))
        kind = draw.randrange(6)
        if kind <= 2 or container is root:
            container[key] = copy.deepcopy(draw.choice(ODD_VALUES))
        elif kind == 3:
            del container[key]
        elif kind == 4:
            others = list(places(root[0]))
            if others:
                other, name = draw.choice(others)
                container[key] = json.loads(json.dumps(other[name]))
        elif isinstance(container, dict):
            container[draw.choice(["unknown", "", "__class__", "\ud800", key + " "])] = draw.choice(
                ODD_VALUES
            )
    damaged_text = json.dumps(root[0])
    damaged_text = damaged_text.replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)
    if draw.random() < 0.1:
        damaged_text = damaged_text.replace("{", '{"step": 1, ', 1) if "{" in damaged_text else damaged_text
    return damaged_text


def damaged_lines(content: bytes, draw: random.Random) -> bytes:
    """One line of JSON lines damaged as JSON."""
    lines = content.decode().splitlines()
    number = draw.randrange(len(lines))
    lines[number] = damaged_json(lines[number], draw)
    return "\n".join(lines).encode()


def damaged_header(content: bytes, draw: random.Random) -> bytes:
    """The JSON header of safetensors damaged, its length right."""
    size = int.from_bytes(content[:8], "little")
    header = damaged_json(content[8 : 8 + size].decode(), draw).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def damaged_model(content: bytes, draw: random.Random) -> bytes:
    """Fields of a SentencePiece model damaged, and all of it still a protobuf."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(content)
    for _ in range(draw.choice((1, 1, 3))):
        piece = draw.choice(model.pieces)
        kind = draw.randrange(10)
        if kind == 0:
            piece.score = draw.choice((float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 0.0))
        elif kind == 1:
            piece.piece = draw.choice(
                ("", "▁", "a" * 100_000, "\0", draw.choice(model.pieces).piece, "<unk>")
            )
        elif kind == 2:
            piece.type = draw.randrange(1, 7)
        elif kind == 3:
            del model.pieces[draw.randrange(1, len(model.pieces) + 1) :]
        elif kind in (4, 5, 6):
            name = draw.choice(("normalizer_spec", "denormalizer_spec"))
            charsmap = model.normalizer_spec.precompiled_charsmap
            getattr(model, name).precompiled_charsmap = damaged(charsmap, draw)
        elif kind == 7:
            model.trainer_spec.model_type = draw.randrange(1, 5)
        elif kind == 8:
            name = draw.choice(("byte_fallback", "treat_whitespace_as_suffix"))
            setattr(model.trainer_spec, name, True)
        else:
            name = draw.choice(("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"))
            setattr(model.normalizer_spec, name, False)
    return model.SerializeToString()


def damaged_pickle(content: bytes, draw: random.Random) -> bytes:
    """Other names and other kinds of values in a file of torch.save."""
    import torch

    tensors: dict[Any, Any] = torch.load(io.BytesIO(content), weights_only=True)
    odd: list[Callable[[Any], object]] = [
        lambda w: w.half(), lambda w: w.to("meta"), lambda w: w.to_sparse(), lambda w: w.long(),
        lambda w: w + 1j, lambda w: w > 0, lambda w: w.sum(), lambda w: w[:0],
        lambda w: w[..., None], lambda w: w.flatten(), lambda w: w * math.nan, lambda w: w.t(),
        lambda w: w.tolist(), lambda w: w.sum().expand(1 << 40), lambda w: [w], lambda w: None,
        lambda w: "text",
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), lambda w: {"weight": w},
    ]  # fmt: skip
    for name in draw.sample(list(tensors), draw.choice((1, 1, 3))):
        if draw.random() < 0.3:
            tensors[draw.choice([7, "", ("a",), "deberta.", None, *tensors])] = tensors.pop(name)
        elif name in tensors and isinstance(tensors[name], torch.Tensor):
            with warnings.catch_warnings(action="ignore"):  # quantised tensors are deprecated
                tensors[name] = draw.choice(odd)(tensors[name])
    whole: Any = tensors
    if draw.random() < 0.05:
        whole = draw.choice([[], {}, None, {"state_dict": tensors}, list(tensors.values())])
    stream = io.BytesIO()
    torch.save(whole, stream)
    return stream.getvalue()


# What damages a file beside `damaged`, by the end of its name.
SPECIAL: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": lambda content, draw: damaged_json(content.decode(), draw).encode(),
    ".jsonl": damaged_lines,
    ".safetensors": damaged_header,
    ".model": damaged_model,
    ".bin": damaged_pickle,
}


# ---- what reads the files


class Format(NamedTuple):
    """Files that one reader reads."""

    files: tuple[str, ...]  # one of them is damaged
    read: Callable[[], object]  # in the folder that holds all files


DATA_FLAGS = ["--corpus=text.txt", "--cache-dir=cache"]
TEXTS = ["The cat sees the river.", "", " ", "\0 \ud800 \u2028 ﷽ 猫", "a" * 3000, "▁▁ [MASK] <unk>"]
EVALUATIONS = {
    "blimp_filtered/a.jsonl": {"sentence_good": "A dog.", "sentence_bad": "A dogs.", "field": "x"},
    "ewok_filtered/b.jsonl": {
        "Domain": "d", "Context1": "A cat.", "Context2": "A dog.", "Target1": "It sees.", "Target2": "It is.",
    },
    "glue_filtered/boolq.train.jsonl": {"question": "Is it?", "passage": "It is, today.", "label": 1},
}  # fmt: skip


def write_material(folder: Path) -> None:
    """Good files of every format. Paths in them are relative, as readers work in a copy of the folder."""
    import torch
    from hub_checkpoints import v1_checkpoint, v2_checkpoint
    from saes import SETTINGS, learnt_dictionary, random_sae
    from small_runs import random_run
    from small_text import NANO_FLAGS, write_corpus

    import fit_dictionary
    import train
    from mlsm.coding.sae_export import write_sae
    from mlsm.export import export
    from mlsm.files import write_json
    from mlsm.runs.checkpoint import MODEL_FILE

    with contextlib.chdir(folder):
        write_corpus(Path("text.txt"))
        train.main(["--objective=mlm", *DATA_FLAGS, *NANO_FLAGS, "--output=run"])
        tiny = ["--k=8", "--num-tokens=400", "--num-updates=2", "--batch-size=50"]
        fit_dictionary.main(["--teacher=run", *tiny, "--output=dictionary.safetensors"])
        shutil.copytree("run", "unfinished")
        Path("unfinished", MODEL_FILE).unlink()
        shutil.rmtree("unfinished/checkpoints/step-6")  # an update is left to do after step 4
        (cache,) = Path("cache").glob("*/ids-*")
        shutil.copytree(cache, "index")
        write_json(Path("run/results.json"), {"demo": {"minimal pairs": 0.5}, "demo baseline": {}})
        write_sae(learnt_dictionary(), Path("sae/pursuit"), "saelens")
        write_sae(random_sae(SETTINGS["jumprelu"]), Path("sae/jumprelu"), "saelens")
        write_sae(random_sae(SETTINGS["groupmax"]), Path("sae/groupmax"), "sparsify")
        random_sae(SETTINGS["topk"]).save("sae/dictionary.safetensors")
        export(random_run(Path("random"), num_concepts=6), Path("exported"))
        Path("hub").mkdir()
        torch.save(v1_checkpoint(Path("hub/pairs")).state_dict(), "hub/pairs/pytorch_model.bin")
        Path("hub/pairs/model.safetensors").unlink()
        v2_checkpoint(Path("hub/pieces"))
        export(Path("run"), Path("hub/json"))
        Path("hub/json/mlsm.json").unlink()
        for name, values in EVALUATIONS.items():
            path = Path("evaluation_data", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text((json.dumps(values) + "\n") * 3)


def read_tokenizer() -> None:
    from mlsm.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(Path("run/tokenizer.model"))
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text))
    tokenizer.encode_lines(TEXTS)


def read_corpus() -> None:
    from mlsm.config import DataConfig
    from mlsm.text.batches import Corpus, Selection
    from mlsm.text.corpus import corpus_tokenizer

    config = DataConfig(corpus=("text.txt",), cache_dir="new cache", max_length=32)
    corpus = Corpus(config, corpus_tokenizer(config, 80))
    corpus.update(0, 8, 64, Selection(0.15, True), seed=1)


def read_index() -> None:
    from mlsm.config import DataConfig
    from mlsm.text.batches import Corpus, Selection
    from mlsm.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(Path("run/tokenizer.model"))
    config = DataConfig(corpus=("text.txt",), cache_dir="cache", max_length=32)
    (cache,) = Path("cache").glob("*/ids-*")
    shutil.rmtree(cache)
    shutil.move(Path("index"), cache)
    for mode in ("pairs", "packed"):
        corpus = Corpus(DataConfig(**{**vars(config), "sequence_mode": mode}), tokenizer)
        for micro in corpus.update(0, 8, 64, Selection(0.15, True), seed=1).micro_batches:
            assert 0 <= int(micro.text.ids_T.min()) <= int(micro.text.ids_T.max()) < tokenizer.vocab_size


def read_run() -> None:
    """A run is read as a teacher, to be evaluated, and as the start of another run."""
    import train
    from mlsm.evaluation import summary
    from mlsm.evaluation.results import Results
    from mlsm.runs.run import load_run

    load_run(Path("run"))
    flags = ["--output=student", "--num-steps=1", "--batch-size=4", "--objective=lsm"]
    train.main([*flags, "--teacher=run", "--dictionary=dictionary.safetensors"])
    summary.store(Path("run"), "run", Results("weights", {"minimal pairs": 0.5}))


def read_weights() -> None:
    import torch

    from mlsm.runs.run import load_run
    from mlsm.text.sequences import Sequences

    run = load_run(Path("run"))
    sequences = Sequences.of([torch.arange(9)])
    run.model.decoder_logits(run.model.hidden_at(sequences, torch.arange(9)))


def resume() -> None:
    from small_text import NANO_FLAGS

    import train

    train.main(["--objective=mlm", *DATA_FLAGS, *NANO_FLAGS, "--output=unfinished", "--resume"])


def resume_with_right_digests() -> None:
    """The run is resumed with checksums that fit the damaged files, so that the later checks are reached."""
    for checkpoint in Path("unfinished/checkpoints").iterdir():
        state = json.loads((checkpoint / "state.json").read_text())
        for name in state["sha256"]:
            state["sha256"][name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        (checkpoint / "state.json").write_text(json.dumps(state))
    resume()


def read_dictionary() -> None:
    import torch

    from mlsm.config import TrainConfig
    from mlsm.runs.teacher import load_dictionary, load_teacher

    dictionary = load_dictionary(Path("dictionary.safetensors"), Path("run"))
    teacher = load_teacher(Path("run"), dictionary, TrainConfig(), torch.device("cpu"))
    signals_ND = torch.nn.functional.normalize(torch.ones(2, teacher.encoder.token_embedding.embedding_dim))
    teacher.dictionary.code(signals_ND)


def use_dictionary(dictionary: Any) -> None:
    """Its codes by both coders."""
    import torch

    states_ND = torch.ones(2, len(dictionary.atoms_DK))
    dictionary.code(dictionary.signals(states_ND).unit_ND, max_steps=100)
    if dictionary.sae and dictionary.sae.encoder_DK is not None:
        dictionary.sae.encode(states_ND)


def read_sae_of(name: str) -> None:
    """An SAE of another package is imported and exported again."""
    from mlsm.coding.sae_export import write_sae
    from mlsm.coding.sae_import import read_sae, to_dictionary

    dictionary = to_dictionary(read_sae(Path("sae", name)), layer=2 if name == "pursuit" else 1)
    use_dictionary(dictionary)
    write_sae(dictionary, Path("sae/again"), "sparsify" if name == "groupmax" else "saelens")


def read_dictionary_of_an_sae() -> None:
    from mlsm.coding.dictionary import Dictionary

    use_dictionary(Dictionary.load("sae/dictionary.safetensors"))


def read_evaluation_data() -> None:
    from mlsm.evaluation.glue import encode_item, read_items
    from mlsm.evaluation.minimal_pairs import encode_suite, read_files
    from mlsm.evaluation.tasks import SUITES
    from mlsm.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(Path("run/tokenizer.model"))
    for name in ("blimp", "ewok"):
        files = read_files(SUITES[name], Path("evaluation_data"))
        encode_suite(SUITES[name], files, tokenizer, 128, has_prefix=True)
    for item in read_items(Path("evaluation_data"), "boolq", "train"):
        encode_item(tokenizer, item.segments, 32)


def keep_results() -> None:
    from mlsm.evaluation import summary
    from mlsm.evaluation.results import Results

    summary.store(Path("run"), "run", Results("weights", {"minimal pairs": 0.5}))


def read_exported() -> None:
    """An exported model is loaded from Python and as a teacher, and a second export overwrites it."""
    import mlsm
    from mlsm.export import export

    model = mlsm.load("exported", device="cpu")
    model.concepts("The cat sees the river.")
    model.predict("The [MASK] sees the river.")
    export(Path("run"), Path("exported"))


def convert(name: str) -> None:
    """A checkpoint of others, as a teacher."""
    from mlsm.runs import hub_import
    from mlsm.runs.run import load_encoder

    source = Path("hub", name)
    if hub_import.is_checkpoint(source):
        hub_import.convert(source, Path("converted"))
        loaded = load_encoder(Path("converted"))
        for text in TEXTS:
            loaded.tokenizer.decode(loaded.tokenizer.encode(text))


_CHECKPOINT = "unfinished/checkpoints/step-4/"
_INDEX = ("ids.npy", "line_stops.npy", "line_words.npy", "line_characters.npy", "counts_V.npy")
_EXPORTED = ("mlsm.json", "model.safetensors", "concepts.safetensors", "tokenizer.model")
_BYTE_PAIRS = ("config.json", "vocab.json", "merges.txt", "pytorch_model.bin")
_PIECES = ("config.json", "spm.model", "model.safetensors")
_JSON = ("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors")
FORMATS = {
    "tokenizer": Format(("run/tokenizer.model",), read_tokenizer),
    "corpus": Format(("text.txt",), read_corpus),
    "index": Format(tuple(f"index/{name}" for name in _INDEX), read_index),
    "config": Format(("run/config.json",), read_run),
    "resumed config": Format(("unfinished/config.json",), resume),
    "weights": Format(("run/model.safetensors",), read_weights),
    "metrics": Format(("unfinished/metrics.jsonl",), resume),
    "state": Format((_CHECKPOINT + "state.json",), resume),
    "checkpoint": Format(
        (_CHECKPOINT + "model.safetensors", _CHECKPOINT + "optimizer.safetensors"),
        resume_with_right_digests,
    ),
    "dictionary": Format(("dictionary.safetensors",), read_dictionary),
    "dictionary of an SAE": Format(("sae/dictionary.safetensors",), read_dictionary_of_an_sae),
    "SAELens without encoder": Format(
        ("sae/pursuit/cfg.json", "sae/pursuit/sae_weights.safetensors"),
        functools.partial(read_sae_of, "pursuit"),
    ),
    "SAELens": Format(
        ("sae/jumprelu/cfg.json", "sae/jumprelu/sae_weights.safetensors"),
        functools.partial(read_sae_of, "jumprelu"),
    ),
    "sparsify": Format(
        ("sae/groupmax/cfg.json", "sae/groupmax/sae.safetensors"),
        functools.partial(read_sae_of, "groupmax"),
    ),
    "evaluation": Format(tuple(f"evaluation_data/{name}" for name in EVALUATIONS), read_evaluation_data),
    "results": Format(("run/results.json",), keep_results),
    "exported": Format(tuple(f"exported/{name}" for name in _EXPORTED), read_exported),
    "teacher with byte pairs": Format(
        tuple(f"hub/pairs/{name}" for name in _BYTE_PAIRS), functools.partial(convert, "pairs")
    ),
    "teacher with SentencePiece": Format(
        tuple(f"hub/pieces/{name}" for name in _PIECES), functools.partial(convert, "pieces")
    ),
    "teacher with tokenizer.json": Format(
        tuple(f"hub/json/{name}" for name in _JSON), functools.partial(convert, "json")
    ),
}


# ---- one case


def damage(material: Path, name: str, number: int, seed: int) -> None:
    """Damage one file of a format, as the number says."""
    draw = random.Random(f"{seed} {name} {number}")
    path = material / draw.choice(FORMATS[name].files)
    ways = [damaged, SPECIAL[path.suffix]] if path.suffix in SPECIAL else [damaged]
    path.write_bytes(draw.choice(ways)(path.read_bytes(), draw))


def outcome(read: Callable[[], object]) -> str:
    """'accepted', 'refused' or what went wrong."""
    from mlsm import cli

    try:
        read()
    except (ValueError, OSError) as error:
        line = cli.one_line(error)
        is_ours = type(error) is ValueError or isinstance(error, OSError)  # and no decoder's, without a file
        if is_ours and line and len(line) <= LONGEST_MESSAGE and not _written_outside:
            return "refused"
        return f"FAILED {type(error).__name__}: {line[:300]} {_where(error)}"
    except BaseException as error:
        return f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:300]} {_where(error)}"
    return "FAILED wrote " + ", ".join(_written_outside) if _written_outside else "accepted"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and "fuzz.py" not in f.filename]
    return f"({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


_written_outside: list[str] = []
_sandbox = Path("/")


def _watch(event: str, arguments: tuple) -> None:
    """An audit hook: notes programs that are started and files that are touched outside the sandbox."""
    if event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect"):
        _written_outside.append(event)
    elif event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _note(path)
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate"):
        for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
            _note(path)


def _note(path: Any) -> None:
    place = os.path.abspath(os.fsdecode(path))
    if not place.startswith((str(_sandbox) + os.sep, os.devnull)) and place != str(_sandbox):
        _written_outside.append(place)


def work(material: Path, cases: list[tuple[str, int]], seed: int) -> None:
    """The worker runs the cases. It writes a line before and after each one."""
    global _sandbox
    sys.dont_write_bytecode = True
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    case = folder / "case"

    def lay_out() -> None:
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(material, case)
        os.chdir(case)

    try:
        for name in dict.fromkeys(name for name, _ in cases):
            lay_out()
            FORMATS[name].read()  # good files are read; and what is imported or compiled once is there
        _sandbox = folder
        sys.addaudithook(_watch)
        warnings.simplefilter("error")
        _limit_memory()
        for name, number in cases:
            lay_out()
            damage(case, name, number, seed)
            _written_outside.clear()
            reports.write("started\n")
            reports.write(outcome(FORMATS[name].read) + "\n")
    finally:
        _sandbox = Path("/")
        shutil.rmtree(folder)


def _limit_memory() -> None:
    """Let the address space grow by MEMORY_BYTES at most. A system without /proc sets no limit."""
    status = Path("/proc/self/statm")
    if status.exists():
        limit = int(status.read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# ---- many cases


def run_cases(material: Path, cases: list[tuple[str, int]], seed: int) -> list[str]:
    """The outcome of each case; the worker is started anew after a crash or a hang."""
    root = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join([str(root), str(root / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    outcomes: list[str] = []
    while left := cases[len(outcomes) :]:
        command = [sys.executable, __file__, "--work", str(material), str(seed)]
        with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said:
            asked.write(json.dumps(left).encode())
            asked.seek(0)
            pipes: dict[str, Any] = {"stdin": asked, "stdout": subprocess.PIPE, "stderr": said}
            worker = subprocess.Popen(command, env=environment, **pipes)
            assert worker.stdout is not None
            is_under_way, has_started = False, False
            while line := _next_line(worker, DEADLINE_S if has_started else STARTING_S):
                is_under_way = line == "started"
                has_started = True
                if not is_under_way:
                    outcomes.append(line)
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(5.0)
            worker.kill()
            code = worker.wait()
            worker.stdout.close()
            if is_under_way:
                ended = f"no answer in {DEADLINE_S:g} s" if code == -signal.SIGKILL else f"exit code {code}"
                outcomes.append(f"FAILED {ended}")
            elif not has_started:
                said.seek(0)
                raise RuntimeError(f"the worker ended by itself: {said.read().decode()[-2000:]}")
    return outcomes


def _next_line(worker: subprocess.Popen, deadline_s: float) -> str:
    """The next line that the worker writes. It is empty if the worker ends or the deadline passes."""
    ready, _, _ = select.select([worker.stdout], [], [], deadline_s)
    return worker.stdout.readline().decode(errors="replace").strip() if ready and worker.stdout else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=200, help="of each format")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path.append(str(Path(__file__).parent))
    num_failed = 0
    with tempfile.TemporaryDirectory() as folder:
        material = Path(folder)
        write_material(material)
        for name in args.formats:
            numbers = range(args.first, args.first + args.cases)
            outcomes = run_cases(material, [(name, number) for number in numbers], args.seed)
            counts = Counter(result.split()[0] for result in outcomes)
            print(
                f"{name}: {', '.join(f'{count} {what}' for what, count in sorted(counts.items()))}",
                flush=True,
            )
            for number, result in zip(numbers, outcomes, strict=True):
                if result.startswith("FAILED"):
                    num_failed += 1
                    print(f"    {number} {result}", flush=True)
    return int(num_failed > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), [tuple(case) for case in json.load(sys.stdin)], int(sys.argv[3]))
    else:
        sys.exit(main())
