"""The study of the paper's claims, as tables: measures, thresholds, models, questions.

All of it was fixed before the first run. A teacher makes N updates. Students, token heads and controls make
N/10, as in the paper, with the recipes of a preset. Every model is trained with every seed. A seed has its
own teacher, dictionaries, students and token heads, so that a standard error over seeds contains what chance
decides in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mlsm.config import Preset

SEEDS = (12, 13, 14)
TENTH = 0.1  # of the teacher's updates
HELDOUT_SHARE = 0.002  # of the lines of the text

# Thresholds of the answers. The bar of a measure is the distance from random weights to the teacher.
BAR_ERRORS = 3.0  # a measure cannot tell anything unless its bar is so many standard errors wide
ERRORS = (
    2.0  # a threshold is passed, or missed, by at least so many standard errors; else nothing can be told
)
CLOSE = 0.9  # of the bar: a model that has come so far is close to the teacher
BEHIND = 0.8  # of another model's way along the bar: a model that has come less far is behind it
EFFECT = 0.05  # of the bar: a smaller difference between two models does not matter

# Shares of the budget. Minimal pairs and examples are as many as their share allows.
TRAINING_SHARE, PAIRS_SHARE, FINE_TUNING_SHARE = 0.65, 0.15, 0.2
TASKS = ("boolq", "cola", "mrpc", "rte", "sst2")  # to fine-tune on
EPOCHS = 5
# Small models and few examples need larger steps and more of them than the organisers' 5e-5 and 64.
FINE_TUNING_FLAGS = f"--seeds 12 --max-epochs {EPOCHS} --learning-rate 3e-4 --batch-size 16"


class Measure(NamedTuple):
    """What models are compared by."""

    title: str
    sign: int = 1  # -1: less is better
    least_error: float = 0.0  # a standard error counts as at least this, or that of sampling the examples


MEASURES = {
    "loss": Measure("held-out loss", -1, least_error=0.01),  # nats a masked token
    "accuracy": Measure("word accuracy", least_error=0.003),  # of the same tokens
    "blimp": Measure("BLiMP"),  # with the token head, if the model has one
    "bare": Measure("BLiMP without the head"),
    "glue": Measure("fine-tuning"),  # average over tasks, without the head
}
WORDS, ALL = ("loss", "accuracy", "blimp"), ("loss", "accuracy", "blimp", "glue")

RANDOM = "random"
# Rows of random weights, those that these models started from. Held-out words are those of a model that knows
# the frequency of words alone, which is harder to beat.
STARTS = {RANDOM: "teacher", "strong-random": "strong-mlm-words"}
TITLES = {RANDOM: "random weights", "mlm": "MLM", "mlsm": "MLSM", "lsm15": "LSM15", "lsm": "LSM"}
CONCEPTS, INITS = ("mlsm", "lsm15", "lsm"), ("random", "teacher")


class Model(NamedTuple):
    """A row of the study. One that learns concepts gets a token head, too."""

    name: str
    title: str
    objective: str = "lsm"
    init: str = RANDOM  # or the model that it starts from
    length: float = TENTH  # updates, as a share of N
    as_long_as: str = ""  # instead: as much as this model with all that it stands on, in
    equal: str = ""  # words or hours
    flags: str = ""  # of train.py
    dictionary: str = ""  # flags of fit_dictionary.py; without any, the model has the usual dictionary
    teacher: str = "teacher"

    @property
    def has_head(self) -> bool:
        return self.objective in CONCEPTS


def models(preset: Preset, has_strong_teacher: bool = False) -> dict[str, Model]:
    """All models by name."""
    shape, k, lam = preset.model, preset.dictionary.k, preset.dictionary.lam
    half_width = f"--width {shape.width // 2} --num-heads {max(1, shape.num_heads // 2)}"
    half_width += f" --ffn-width {shape.ffn_width // 2}"
    soft = "--targets soft-code"
    table = [
        Model("teacher", "MLM, the teacher", "mlm", length=1.0),
        Model("mlm-random", "MLM, N/10 updates from random weights", "mlm"),
        Model("mlm-teacher", "MLM, N/10 updates from the teacher", "mlm", "teacher"),
        *(
            Model(f"{objective}-{init}", f"{TITLES[objective]} from {_origin(init)}", objective, init)
            for init in INITS
            for objective in CONCEPTS
        ),
        *(Model(f"k-{n}", f"k {n}", dictionary=f"--k {n}") for n in (k // 3, 3 * k)),
        *(Model(f"lam-{x:g}", f"lambda {x:g}", dictionary=f"--lam {x:g}") for x in (lam / 2.5, 4 * lam)),
        *(
            Model(f"layer-{n}", f"layer {n}", dictionary=f"--layer {n}")
            for n in (shape.depth // 3, 2 * shape.depth // 3)
        ),
        Model("tolerance", "tolerance 0.01", flags="--code-tolerance 0.01"),
        Model("steps-100", "100 steps of FISTA, as the authors", flags=f"{soft} --code-steps 100"),
        Model("steps-25", "25 steps of FISTA", flags=f"{soft} --code-steps 25"),
        Model("softened", "softened, temperature 2", flags=f"{soft} --target-temperature 2"),
        Model("half-width", "half the width", flags=half_width),
        Model("half-depth", "half the depth", flags=f"--depth {shape.depth // 2}"),
        *(
            Model(f"mlm-{equal}", f"MLM for as many {equal}", "mlm", as_long_as="lsm-random", equal=equal)
            for equal in ("words", "hours")
        ),
    ]
    if has_strong_teacher:
        # This student makes as many updates as a teacher, because nobody had to train its own. Masked LM
        # starts from the weights that it started from, which read the pieces of the strong teacher.
        table += [
            Model("strong", "LSM, a strong teacher", length=1.0, teacher="outside"),
            *(
                Model(f"strong-mlm-{equal}", f"MLM for as many {equal} as with a strong teacher", "mlm",
                      as_long_as="strong", equal=equal, teacher="outside")
                for equal in ("words", "hours")
            ),
        ]  # fmt: skip
    return {model.name: model for model in table}


def _origin(init: str) -> str:
    return "the teacher" if init == "teacher" else "random weights"


class Claim(NamedTuple):
    """What is judged by each measure of its question. `rule` is a name of study_verdicts.RULES."""

    text: str
    rule: str
    model: str
    other: str = ""
    measures: tuple[str, ...] = ()  # default: those of the question
    bar: tuple[str, str] = (RANDOM, "teacher")


class Question(NamedTuple):
    """A question, the rows of its table, and the claims whose verdicts answer it."""

    title: str
    measures: tuple[str, ...]
    rows: tuple[str, ...]
    claims: tuple[Claim, ...]


def questions(names: Iterable[str]) -> dict[int, Question]:
    """The questions by number, about the models of these names."""
    named = tuple(names)
    usual, strong = "lsm-random", tuple(name for name in named if name.startswith("strong"))

    def of(*prefixes: str) -> tuple[str, ...]:
        return tuple(name for prefix in prefixes for name in named if name.startswith(prefix))

    from_teacher = tuple(f"{objective}-teacher" for objective in CONCEPTS)
    students = [(TITLES[objective], f"{objective}-teacher") for objective in CONCEPTS]
    with_strong = ("strong-random", *strong) if strong else ()
    parameters, codes, halves = of("k-", "lam-", "layer-"), of("tolerance", "steps-", "softened"), of("half-")
    return {
        1: Question(
            "Does LSM from random weights come close to its teacher in a tenth of the updates, and MLSM not? "
            "(Table 3)",
            ALL,
            (RANDOM, "teacher", "mlm-random", "mlsm-random", "lsm15-random", "lsm-random"),
            (
                Claim("LSM comes close to its teacher", "close", usual),
                Claim("MLSM stays behind LSM", "behind", "mlsm-random", usual),
                Claim("LSM is better than MLM of as many updates", "better", usual, "mlm-random"),
            ),
        ),
        2: Question(
            "Does the token head restore what a student of concepts forgets? (Tables 2 and 4)",
            ("bare", *ALL),
            (RANDOM, "teacher", "mlm-teacher", *from_teacher),
            (
                *(Claim(f"{n} alone is behind", "behind", m, "teacher", ("bare",)) for n, m in students),
                *(Claim(f"With a head, {n} is close", "close", m, "", WORDS) for n, m in students),
                *(Claim(f"{n} is better than MLM", "better", m, "mlm-teacher", ALL) for n, m in students),
            ),
        ),
        3: Question(
            "Do k, lambda and the layer matter?",
            WORDS,
            (RANDOM, "teacher", usual, *parameters),
            tuple(Claim(f"{name.replace('-', ' ')} matters", "differs", name, usual) for name in parameters),
        ),
        4: Question(
            "Which codes teach best, and why?",
            WORDS,
            (RANDOM, "teacher", usual, *codes),
            tuple(
                Claim(f"{name.replace('-', ' ')}: better than certified codes", "better", name, usual)
                for name in codes
            ),
        ),
        5: Question(
            "Can a student have half its teacher's width, or half its depth?",
            WORDS,
            (RANDOM, "teacher", usual, *halves),
            tuple(Claim(f"{name.replace('-', ' the ')} differs from the whole", "differs", name, usual)
                  for name in halves),
        ),
        6: Question(
            "Does the detour through concepts pay against masked LM all the way?",
            ALL,
            (RANDOM, "teacher", usual, "mlm-words", "mlm-hours", *with_strong),
            (
                Claim("The detour pays for as many words", "better", usual, "mlm-words"),
                Claim("The detour pays for as many hours", "better", usual, "mlm-hours"),
                *(
                    Claim(f"With a strong teacher it pays for as many {equal}", "better", "strong",
                          f"strong-mlm-{equal}", bar=("strong-random", f"strong-mlm-{equal}"))
                    for equal in ("words", "hours") if strong
                ),
            ),
        ),
    }  # fmt: skip
