"""The report on concepts as figures and as a page.

The page is concept_page.html with the report embedded as JSON. Nothing in a corpus can run there: no tag can
begin in the JSON, the page's script writes it as text only, and the page's policy allows nothing but this
script and the page's style, by their digests.
"""

from __future__ import annotations

import re
from pathlib import Path

from mlsm.figures import new_figure
from mlsm.pages.concept_report import ConceptReport, SentenceConcepts
from mlsm.pages.content_policy import content_policy

TEMPLATE = Path(__file__).with_name("concept_page.html")
CONCEPTS_DRAWN, TOKENS_DRAWN = 12, 6
LABEL_CHARACTERS = 16


def concept_page(
    report: ConceptReport, sentence: SentenceConcepts | None = None, *, is_served: bool = False
) -> str:
    """The page as HTML, with the concepts of a sentence if there is one. A served page has a field for
    sentences, and may ask the server that it comes from.
    """
    template = TEMPLATE.read_text(encoding="utf-8")
    [script], [style] = (
        re.findall(rf"<{kind}>(.*?)</{kind}>", template, re.DOTALL) for kind in ("script", "style")
    )
    policy = content_policy(script, style, is_served=is_served)
    return template.replace("{policy}", policy, 1).replace(
        "{report}", report.to_json(sentence, is_served=is_served), 1
    )


def draw_concepts(path: Path, report: ConceptReport) -> None:
    """Draw how evenly concepts are used, how specific they are, and the tokens of the most interesting
    concepts, one of each group.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    reader = list(report.sources)[-1]
    with new_figure(path, 11, 7) as figure:
        grid = figure.add_gridspec(4, 5, width_ratios=[1.5, 0.05, 1, 1, 1])
        ranks, entropies = figure.add_subplot(grid[:2, 0]), figure.add_subplot(grid[2:, 0])
        for style, (name, use) in zip(["-", "--"], report.sources.items(), strict=False):
            shares = sorted(filter(None, use.share), reverse=True)
            ranks.loglog(range(1, len(shares) + 1), shares, style, color="black", label=name)
            used = [entropy for entropy, share in zip(use.entropy, use.share, strict=True) if share]
            entropies.hist(used, 40, histtype="step", linestyle=style, color="black")
        ranks.set(
            title="How evenly concepts are used", xlabel="concepts by rank", ylabel="share of all weight"
        )
        ranks.legend(frameon=False)
        for axis in (ranks.xaxis, ranks.yaxis):  # plain numbers: powers would be drawn as formulas
            axis.set_major_formatter("{x:g}")
        entropies.set(
            title="How specific they are", xlabel="entropy over token types (bits)", ylabel="concepts"
        )
        for number, k in enumerate(report.by_interest(reader)[:CONCEPTS_DRAWN]):
            axes = figure.add_subplot(grid[number // 3, 2 + number % 3])
            listed = report.sources[reader].tokens[k][:TOKENS_DRAWN]
            shares = [share for _, share in listed]
            axes.barh(range(len(listed)), shares, color="0.7", edgecolor="black", linewidth=0.5)
            axes.set_yticks(range(len(listed)), [_short(report.pieces[i]) for i, _ in listed])
            axes.set_ylim(TOKENS_DRAWN - 0.5, -0.5)
            axes.set_title(f"#{k}, {report.sources[reader].share[k]:.2%} of all weight", fontsize="medium")
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.xaxis.set_major_formatter(PercentFormatter(1))
        figure.suptitle(
            f"{report.about.k} concepts of layer {report.about.layer} in {report.about.positions:,} tokens; "
            f"right: the most interesting concepts of the {reader}, and their tokens"
        )


def _short(text: str) -> str:
    """The text, cut so that it leaves space for the drawing."""
    return text if len(text) <= LABEL_CHARACTERS else text[: LABEL_CHARACTERS - 1] + "…"
