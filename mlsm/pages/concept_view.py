"""A report on concepts as people look at it: two pictures in black and white, and a page of one file.

The page is concept_page.html with the report put in as JSON. What a corpus holds cannot run there: in the
JSON no tag can begin, the page writes it as text only, and its policy allows the page's own script and style
by their digests and nothing else, from nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlsm.files import write_whole

TEMPLATE = Path(__file__).with_name("concept_page.html")
NUM_SHOWN, BARS_SHOWN = 12, 6  # concepts in the picture, tokens of each
FONT_SIZE, LABEL_CHARACTERS = 8, 16


def as_json(told: dict[str, Any]) -> str:
    """Compact, and without '<', so that it can stand in a page."""
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def page(told: dict[str, Any]) -> str:
    """The page as one text."""
    template = TEMPLATE.read_text(encoding="utf-8")
    digests = {
        kind: _digest(re.search(rf"<{kind}>(.*?)</{kind}>", template, re.DOTALL)[1])  # type: ignore[index]
        for kind in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src '{digests['script']}'; style-src '{digests['style']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return template.replace("{policy}", policy, 1).replace("{report}", as_json(told), 1)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """A figure that is written to `path` at the end; tokens are text there, never formulas."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with warnings.catch_warnings(), matplotlib.rc_context({"text.parse_math": False, "font.size": FONT_SIZE}):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # scripts that the font lacks
        figure = pyplot.figure(figsize=(width, height), layout="constrained")
        yield figure
        write_whole(path, lambda p: figure.savefig(p, format="png", dpi=150))
        pyplot.close(figure)


def draw_concepts(path: Path, told: dict[str, Any]) -> None:
    """How evenly concepts are used, how specific they are, and what the largest of them stand for."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    sources = told["sources"]
    shown = list(sources)[-1]
    columns = sources[shown]
    order = sorted(range(len(columns["share"])), key=lambda k: -columns["share"][k])
    with _figure(path, 11, 7) as figure:
        grid = figure.add_gridspec(4, 5, width_ratios=[1.5, 0.05, 1, 1, 1])
        ranks, entropies = figure.add_subplot(grid[:2, 0]), figure.add_subplot(grid[2:, 0])
        for style, (name, other) in zip(["-", "--"], sources.items(), strict=False):
            shares = sorted((s for s in other["share"] if s > 0), reverse=True)
            ranks.loglog(range(1, len(shares) + 1), shares, style, color="black", label=name)
            used = [e for e, s in zip(other["entropy"], other["share"], strict=True) if s > 0]
            entropies.hist(used, 40, histtype="step", linestyle=style, color="black", label=name)
        ranks.set(
            xlabel="concepts by rank", ylabel="share of all weight", title="How evenly concepts are used"
        )
        entropies.set(
            xlabel="entropy over token types (bits)", ylabel="concepts", title="How specific they are"
        )
        ranks.legend(frameon=False)
        for axis in (ranks.xaxis, ranks.yaxis):  # plain numbers: powers would be formulas
            axis.set_major_formatter("{x:g}")
        for number, concept in enumerate(order[:NUM_SHOWN]):
            axes = figure.add_subplot(grid[number // 3, 2 + number % 3])
            pairs = columns["tokens"][concept][: 2 * BARS_SHOWN]
            tokens, shares = [_short(told["pieces"][i]) for i in pairs[::2]], pairs[1::2]
            axes.barh(range(len(tokens)), shares, color="0.7", edgecolor="black", linewidth=0.5)
            axes.set_yticks(range(len(tokens)), tokens)
            axes.set_ylim(BARS_SHOWN - 0.5, -0.5)
            axes.set_title(f"#{concept}, {columns['share'][concept]:.2%} of all weight", fontsize=FONT_SIZE)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.xaxis.set_major_formatter(PercentFormatter(1))
        figure.suptitle(
            f"{told['about']['k']} concepts of layer {told['about']['layer']} "
            f"in {told['about']['positions']:,} tokens; right: the largest of the {shown}, by their tokens"
        )


def draw_sentence(path: Path, told: dict[str, Any]) -> None:
    """Token by concept, the darker the more weight: the codes beside what the student predicts."""
    from matplotlib.colors import PowerNorm

    sentence = told["sentence"]
    tokens, concepts, weights = sentence["tokens"], sentence["concepts"], sentence["weights"]
    width, height = 2 + 0.17 * len(concepts) * len(weights), 2.2 + 0.17 * len(tokens)
    with _figure(path, max(5, width), height) as figure:
        scale = PowerNorm(0.5, 0, 1)  # small weights show
        panels = figure.subplots(1, len(weights), sharey=True, squeeze=False)[0]
        for axes, (name, rows) in zip(panels, weights.items(), strict=True):
            image = axes.imshow(rows, cmap="Greys", norm=scale, aspect="auto")
            axes.set_xticks(range(len(concepts)), [_label(told, k) for k in concepts], rotation=90)
            axes.set_yticks(range(len(tokens)), map(_short, tokens))
            axes.set_title("the teacher's codes" if name == "teacher" else "the student's prediction")
            axes.set_xticks([x - 0.5 for x in range(1, len(concepts))], minor=True)
            axes.set_yticks([y - 0.5 for y in range(1, len(tokens))], minor=True)
            axes.grid(which="minor", color="0.85", linewidth=0.4)
            axes.tick_params(which="minor", length=0)
        figure.colorbar(image, ax=panels, label="share of the concept in the token", shrink=0.8)


def _label(told: dict[str, Any], concept: int) -> str:
    """A concept's number and the token it is used for most."""
    pairs = next(iter(told["sources"].values()))["tokens"][concept]
    return f"#{concept} {_short(told['pieces'][pairs[0]]) if pairs else '(unused)'}"


def _short(text: str) -> str:
    """Text that leaves room for the picture."""
    return text if len(text) <= LABEL_CHARACTERS else text[: LABEL_CHARACTERS - 1] + "…"
