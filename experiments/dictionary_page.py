"""The page and the figure of the trade-off between short codes and what they keep."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlsm.evaluation.circumstances import circumstances
from mlsm.evaluation.tables import Row, as_markdown
from mlsm.figures import new_figure, stroke_of
from mlsm.files import write_text


@dataclass(frozen=True)
class Measured:
    """What codes keep of held-out states."""

    nonzeros: float  # of a code, mean
    explained_variance: float
    loss_recovered: float
    kl_recovered: float
    dead: int  # concepts that no held-out state uses
    dense: int  # concepts that more than a tenth of the states use
    seconds: float = 0.0  # processor time of learning; 0 where nothing was learnt for the row


Comparison = Mapping[str, Mapping[str, Measured]]
"""Rows by title, by "LAYER LAMBDA"."""


def write(folder: Path, measured: Comparison, settings: Mapping[str, object]) -> None:
    """Write dictionaries.md and dictionaries.png."""
    names = sorted(measured, key=lambda name: [*map(float, name.split())])
    rows: list[Row] = []
    for name in names:
        layer, lam = name.split()
        for title, row in measured[name].items():
            rows.append(
                {
                    "layer": layer,
                    "lambda": lam,
                    "codes": title,
                    "L0": f"{row.nonzeros:.1f}",
                    "variance explained": f"{row.explained_variance:.4f}",
                    "loss recovered": f"{row.loss_recovered:.4f}",
                    "KL recovered": f"{row.kl_recovered:.4f}",
                    "dead": str(row.dead),
                    "dense": str(row.dense),
                    "CPU seconds": f"{row.seconds:.0f}" if row.seconds else "",
                }
            )
    about = f"""Written by the command below. Every row has codes of {settings["k"]}
    concepts, of states of norm 1 in one layer.
    "dictionary" is that of fit_dictionary.py, with the codes of Eq. 2. "autoencoder" is a TopK autoencoder of
    SAELens with k = L0 of the dictionary, trained on the same states for {settings["sae_updates"]} updates of
    {settings["sae_batch_size"]} states (Adam, learning rate {settings["sae_learning_rate"]}); its codes come
    from its own encoder. "its decoder, lasso" has its decoder and bias, with codes by the lasso at the lambda
    of equal L0. "refitted" codes have the concepts of the row above and weights of least squares, because the
    lasso shrinks all weights. Variance, dead and dense concepts are measured on held-out states; the losses
    on {settings["num_words"]} masked words of held-out text. CPU seconds are those of fitting or training,
    and those of the dictionary contain its measures. One seed. Longer training of the autoencoders was not
    tried."""
    text = f"""# Short codes and what they keep: dictionaries and sparse autoencoders

{textwrap.fill(" ".join(about.split()), 110)}

{circumstances(" ".join(["python experiments/dictionaries.py", *sys.argv[1:]]))}

{as_markdown(rows)}
{_gaps(measured, names)}
![L0 against explained variance and loss recovered](dictionaries.png)
"""
    write_text(folder / "dictionaries.md", text.strip() + "\n")
    draw(folder / "dictionaries.png", measured, names)


def _gaps(measured: Comparison, names: list[str]) -> str:
    """Sentences on the amortisation gap; "" without autoencoders."""
    pairs = [
        (rows["autoencoder"], rows["its decoder, lasso refitted"], rows["dictionary, refitted"])
        for rows in (measured[name] for name in names)
        if "autoencoder" in rows
    ]
    if not pairs:
        return ""

    def span(values: list[float]) -> str:
        low, high = f"{min(values):+.4f}", f"{max(values):+.4f}"
        return low if low == high else f"{low} to {high}"

    same = span([exact.explained_variance - own.explained_variance for own, exact, _ in pairs])
    same_loss = span([exact.loss_recovered - own.loss_recovered for own, exact, _ in pairs])
    other = span([ours.explained_variance - own.explained_variance for own, _, ours in pairs])
    other_loss = span([ours.loss_recovered - own.loss_recovered for own, _, ours in pairs])
    text = f"""The amortisation gap is what the encoder of an autoencoder loses against a search for
    the codes. On the same decoder, refitted codes of the lasso differ from those of the encoder by {same} in
    explained variance and by {same_loss} in loss recovered, over all pairs of layer and lambda. The
    dictionary's refitted codes differ from the autoencoder's by {other} and by {other_loss}.
    Above 0, the lasso is better."""
    return textwrap.fill(" ".join(text.split()), 110) + "\n"


def draw(path: Path, measured: Comparison, names: list[str]) -> None:
    """Draw explained variance and loss recovered over L0, a curve for each layer and kind of codes."""
    layers = list(dict.fromkeys(name.split()[0] for name in names))
    titles = list(dict.fromkeys(title for name in names for title in measured[name]))
    with new_figure(path, 4 * len(layers), 6) as figure:
        grid = figure.subplots(2, len(layers), squeeze=False)
        for column, layer in enumerate(layers):
            for row, (field, label) in enumerate(
                (("explained_variance", "variance explained"), ("loss_recovered", "loss recovered"))
            ):
                axes = grid[row, column]
                for number, title in enumerate(titles):
                    points = sorted(
                        (rows[title].nonzeros, getattr(rows[title], field))
                        for name in names
                        if name.split()[0] == layer and title in (rows := measured[name])
                    )
                    stroke = stroke_of(number)
                    if points:
                        axes.plot(
                            *zip(*points, strict=True),
                            label=title,
                            marker=".",
                            color=stroke.color,
                            dashes=stroke.dashes,
                        )
                axes.set(xlabel="non-zeros per code", ylabel=label, title=f"layer {layer}")
        grid[0, 0].legend(frameon=False)
