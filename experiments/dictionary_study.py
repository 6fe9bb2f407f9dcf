"""The trade-off between short codes and what they keep, next to sparse autoencoders with codes as short.

    python experiments/dictionaries.py --teacher runs/teacher --layer 4,8,12 --lam 0.02,0.05,0.1

For each layer and lambda, fit_dictionary.py learns a dictionary, and SAELens (pip install sae-lens, optional)
trains a TopK autoencoder on the same hidden states, with k the mean number of non-zeros of the dictionary's
codes. Both are measured on the same held-out states and words. An autoencoder computes its codes by one
linear layer; the same decoder with codes of the lasso shows what that costs (the amortisation gap). The lasso
shrinks all weights, and so each measure is also shown with the weights refitted by least squares. A table and
a figure go to results/. What was measured is kept in the teacher's directory, and not measured again.

Legend: N states, D width, K concepts, S concepts of a state.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from dictionary_page import Measured, write
from torch import Tensor
from torch.nn import functional as F

import fit_dictionary
from kernels.lasso import nonneg_lasso
from mlsm import command_line
from mlsm.coding.dictionary import Dictionary
from mlsm.coding.statistics import DENSE_ACTIVITY
from mlsm.coding.targets import Sample, sample_states
from mlsm.command_line import Parser
from mlsm.config import PRESETS, DictionaryConfig
from mlsm.device import choose_precision
from mlsm.evaluation.splicing import splice
from mlsm.files import read_json, write_json
from mlsm.log import say
from mlsm.runs.run import Run, load_run
from mlsm.runs.teacher import text_of
from mlsm.seeds import seed_for
from mlsm.settings import check_fields, check_positive, from_json, option
from mlsm.text.batches import Corpus


@dataclass(frozen=True)
class Settings:
    """The dictionaries that are compared, and how the autoencoders are trained."""

    teacher: Path = option(
        Path("runs/teacher"), "run whose hidden states are decomposed", metavar="DIRECTORY"
    )
    layer: str = option("4,8,12", "layers of the teacher, with commas", metavar="LAYERS")
    lam: str = option("0.02,0.05,0.1", "sparsity penalties, with commas", metavar="LAMBDAS")
    k: int = option(1500, "number of concepts, and of latents")
    sae_updates: int = option(2000, "updates of an autoencoder")
    sae_batch_size: int = option(256, "hidden states per update of an autoencoder")
    sae_learning_rate: float = option(1e-3, "learning rate of an autoencoder; it decays in the last fifth")
    num_words: int = option(2000, "masked words of which the loss is measured")
    seed: int = option(12, "seed of everything that is drawn")
    output: Path = option(
        Path("results"), "folder for dictionaries.md and dictionaries.png", metavar="DIRECTORY"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name, kind in (("layer", int), ("lam", float)):
            try:
                [kind(part) for part in getattr(self, name).split(",")]
            except ValueError:
                raise ValueError(
                    f"--{name} takes numbers with commas between them, got {getattr(self, name)!r}"
                ) from None
        check_positive(self, "k", "sae_updates", "sae_batch_size", "sae_learning_rate", "num_words")


def parser() -> Parser:
    """The command line."""
    return command_line.parser(__doc__ or "", {"settings": Settings})


Coder = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Reconstructions (N, D) and codes (N, K) of unit-norm states (N, D)."""

BLOCK = 2048  # states that are coded together
KEPT_FILE = "dictionaries.json"  # in the teacher's directory
# Titles of rows.
OF_DICTIONARY = ("dictionary", "dictionary, refitted")
OF_AUTOENCODER = ("autoencoder", "its decoder, lasso", "its decoder, lasso refitted")
NUM_TUNED = 2000  # states on which lambda is chosen for a number of non-zeros


def lasso_coder(
    atoms_DK: Tensor, lam: float, offset_D: Tensor | None = None, *, refits: bool = False
) -> Coder:
    """Codes by the lasso of states minus an offset. With `refits` the weights of their concepts are those of
    the least squares, without those that would be negative.
    """
    offset = atoms_DK.new_zeros(len(atoms_DK)) if offset_D is None else offset_D

    def code(states_ND: Tensor) -> tuple[Tensor, Tensor]:
        shifted_ND = states_ND - offset
        codes_NK = nonneg_lasso(shifted_ND, atoms_DK, lam, tol=1e-3).codes_NK
        if refits:
            codes_NK = refitted(codes_NK, atoms_DK, shifted_ND)
        return codes_NK @ atoms_DK.mT + offset, codes_NK

    return code


def refitted(codes_NK: Tensor, atoms_DK: Tensor, states_ND: Tensor) -> Tensor:
    """Codes of the same concepts with the weights of least squares; negative weights become 0."""
    weights_NS, concepts_NS = codes_NK.topk(max(1, int((codes_NK > 0).sum(1).max())), dim=1)
    is_used_NS = weights_NS > 0
    atoms_NSD = atoms_DK.mT[concepts_NS] * is_used_NS[:, :, None]
    gram_NSS = (atoms_NSD @ atoms_NSD.mT).double()
    gram_NSS += torch.diag_embed(torch.where(is_used_NS, 1e-6, 1.0).double())  # regular, also for equal atoms
    target_NS = (atoms_NSD @ states_ND[:, :, None])[:, :, 0].double()
    solved_NS = torch.linalg.solve(gram_NSS, target_NS).float().clamp_min(0) * is_used_NS
    return torch.zeros_like(codes_NK).scatter(1, concepts_NS, solved_NS)


def lambda_for(atoms_DK: Tensor, states_ND: Tensor, num_nonzeros: float) -> float:
    """The lambda at which codes of the states have so many non-zeros, by bisection of its logarithm."""
    low, high = math.log(1e-4), math.log(float((states_ND @ atoms_DK).max()))
    for _ in range(12):
        middle = (low + high) / 2
        codes_NK = nonneg_lasso(states_ND, atoms_DK, math.exp(middle), tol=1e-3).codes_NK
        if float((codes_NK > 0).sum(1).float().mean()) > num_nonzeros:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def has_saelens() -> bool:
    """Whether autoencoders can be trained here."""
    return importlib.util.find_spec("sae_lens") is not None


class Autoencoder(Protocol):
    """What is used of an autoencoder of SAELens."""

    W_dec: Tensor  # (K, D)
    b_dec: Tensor  # (D,)

    def encode(self, states_ND: Tensor, /) -> Tensor:
        """Codes (N, K)."""

    def decode(self, codes_NK: Tensor, /) -> Tensor:
        """States (N, D)."""


def train_autoencoder(states_ND: Tensor, k: int, settings: Settings) -> Autoencoder:
    """A TopK autoencoder of SAELens, trained on the states by the trainer of SAELens."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    generator = torch.Generator().manual_seed(seed_for("autoencoder", settings.seed))

    def batches() -> Iterator[Tensor]:
        while True:
            for rows in torch.randperm(len(states_ND), generator=generator).split(settings.sae_batch_size):
                if len(rows) == settings.sae_batch_size:
                    yield states_ND[rows]

    torch.manual_seed(seed_for("autoencoder weights", settings.seed))
    width = states_ND.shape[1]
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=width, d_sae=settings.k, k=k))
    with torch.no_grad():
        sae.b_dec.copy_(states_ND.mean(0))
    config = SAETrainerConfig(
        total_training_samples=settings.sae_updates * settings.sae_batch_size,
        train_batch_size_samples=settings.sae_batch_size,
        lr=settings.sae_learning_rate,
        lr_end=settings.sae_learning_rate,
        lr_decay_steps=settings.sae_updates // 5,
        dead_feature_window=max(1, settings.sae_updates // 10),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(config, sae, batches()).fit().eval()


def autoencoder_coder(sae: Autoencoder) -> Coder:
    """The codes that an autoencoder computes itself."""

    def code(states_ND: Tensor) -> tuple[Tensor, Tensor]:
        codes_NK = sae.encode(states_ND)
        return sae.decode(codes_NK), codes_NK

    return code


@torch.no_grad()
def measure(
    run: Run, corpus: Corpus, layer: int, heldout_ND: Tensor, coder: Coder, num_words: int
) -> Measured:
    """What the codes of a coder keep of held-out states, and of the teacher's predictions."""
    blocks = [coder(block_ND) for block_ND in heldout_ND.split(BLOCK)]
    rebuilt_ND = torch.cat([rebuilt for rebuilt, _ in blocks])
    uses_NK = torch.cat([codes > 0 for _, codes in blocks])
    variation = float((heldout_ND - heldout_ND.mean(0)).double().square().sum())

    def replaced(hidden_ND: Tensor) -> Tensor:
        norm_N1 = hidden_ND.norm(dim=1, keepdim=True)
        return norm_N1 * torch.cat([coder(b)[0] for b in F.normalize(hidden_ND, dim=1).split(BLOCK)])

    spliced = splice(run.model, layer, replaced, corpus, num_words)
    assert spliced is not None, "text is held out"
    return Measured(
        nonzeros=float(uses_NK.sum(1).double().mean()),
        explained_variance=1 - float((heldout_ND - rebuilt_ND).double().square().sum()) / variation,
        loss_recovered=spliced.loss_recovered,
        kl_recovered=spliced.kl_recovered,
        dead=int((~uses_NK.any(0)).sum()),
        dense=int((uses_NK.double().mean(0) > DENSE_ACTIVITY).sum()),
    )


def sample(run: Run, corpus: Corpus, layer: int) -> Sample:
    """The hidden states of a layer as fit_dictionary.py samples them."""
    preset, encoder = PRESETS[run.record.preset](), run.model.encoder
    return sample_states(
        encoder,
        layer,
        corpus,
        num_tokens=preset.dictionary.num_tokens,
        token_budget=preset.teacher.token_budget,
        seed=preset.dictionary.seed,
        precision=choose_precision("auto", run.model.device, encoder.width),
        device=run.model.device,
    )


Rows = dict[str, Measured]  # by title


def compare(settings: Settings) -> None:
    """Fit, train and measure what is not measured yet, and write the page."""
    run = load_run(settings.teacher)
    corpus = Corpus(text_of(run.record, {}), run.tokenizer)
    measured = read_measured(settings)
    titles = [*OF_DICTIONARY, *(OF_AUTOENCODER if has_saelens() else [])]
    if not has_saelens():
        say("no autoencoders: the package is missing, pip install sae-lens")
    for layer in map(int, settings.layer.split(",")):
        samples: dict[int, Sample] = {}
        for lam in map(float, settings.lam.split(",")):
            name = f"{layer} {lam:g}"
            if {*titles} <= {*measured.get(name, {})}:
                continue
            if not samples:
                samples[layer] = sample(run, corpus, layer)
            measured[name] = rows_of(settings, run, corpus, layer, lam, samples)
            write_measured(settings, measured)
    write(settings.output, measured, asdict(settings))


def rows_of(
    settings: Settings, run: Run, corpus: Corpus, layer: int, lam: float, samples: dict[int, Sample]
) -> Rows:
    """The rows of a layer and a lambda, with those of an autoencoder if SAELens is there."""
    heldout_ND, sample_ND = fit_dictionary.split(samples[layer].states_ND)

    def score(coder: Coder, seconds: float = 0.0) -> Measured:
        return replace(measure(run, corpus, layer, heldout_ND, coder, settings.num_words), seconds=seconds)

    began = time.process_time()
    flags = [f"--teacher={settings.teacher}", f"--layer={layer}", f"--lam={lam:g}", f"--k={settings.k}"]
    fit_dictionary.main(flags, samples)
    seconds = time.process_time() - began
    file = settings.teacher / DictionaryConfig(k=settings.k, lam=lam).file_name(layer)
    atoms_DK = Dictionary.load(file).atoms_DK
    dictionary = score(lasso_coder(atoms_DK, lam), seconds)
    rows = [dictionary, score(lasso_coder(atoms_DK, lam, refits=True))]
    if not has_saelens():
        return dict(zip(OF_DICTIONARY, rows, strict=True))
    k, began = max(1, round(dictionary.nonzeros)), time.process_time()
    sae = train_autoencoder(sample_ND, k, settings)
    seconds = time.process_time() - began
    decoder_DK, offset_D = F.normalize(sae.W_dec.detach().mT.contiguous(), dim=0), sae.b_dec.detach()
    equal = lambda_for(decoder_DK, sample_ND[:NUM_TUNED] - offset_D, k)
    rows += [
        score(autoencoder_coder(sae), seconds),
        score(lasso_coder(decoder_DK, equal, offset_D)),
        score(lasso_coder(decoder_DK, equal, offset_D, refits=True)),
    ]
    return dict(zip([*OF_DICTIONARY, *OF_AUTOENCODER], rows, strict=True))


def read_measured(settings: Settings) -> dict[str, Rows]:
    """What was measured with these settings before, by "LAYER LAMBDA"."""
    path = settings.teacher / KEPT_FILE
    kept = read_json(path) if path.exists() else {}
    if kept.get("settings") != _settings_that_matter(settings):
        return {}
    return {
        name: {title: from_json(Measured, row) for title, row in rows.items()}
        for name, rows in kept["rows"].items()
    }


def write_measured(settings: Settings, measured: dict[str, Rows]) -> None:
    """Keep what was measured, so that it is not measured again."""
    rows = {name: {title: asdict(row) for title, row in rows.items()} for name, rows in measured.items()}
    write_json(settings.teacher / KEPT_FILE, {"settings": _settings_that_matter(settings), "rows": rows})


def _settings_that_matter(settings: Settings) -> dict[str, str]:
    """Those of which another value gives other numbers for a layer and a lambda."""
    return {n: str(value) for n, value in asdict(settings).items() if n not in ("layer", "lam", "output")}


def main(argv: list[str]) -> None:
    """Read the command line and compare."""
    compare(command_line.parse(Settings, argv, __doc__ or ""))
