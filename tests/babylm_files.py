"""Invented items in the formats of BabyLM 2026, with texts that tokenizers treat in odd ways."""

import csv
import json
import random
from pathlib import Path

from small_text import sentences
from task_files import write_lines

ODD = [
    "The cat  sees two blanks.",
    " A blank stands first.",
    "The end has a blank. ",
    "Who sees?\nThe cat sees.",
    "Z\u00fcrich and \u732b are words.",
    "``It rains,'' he said.",
    "\u2581the\u2581 cat",
    "A tab\tand a no-break\u00a0space.",
]


def shuffled(text: str, draw: random.Random) -> str:
    words = text.split()
    draw.shuffle(words)
    return " ".join(words)


def write_babylm(root: Path, num_items: int = 12) -> Path:
    """full_eval and fast_eval with invented items of every task. EWoK's real texts must not be copied."""
    draw = random.Random(5)
    for kind, full, blimp, supplement, ewok, entity in (
        ("full_eval", True, "blimp_filtered", "supplement_filtered", "ewok_filtered", "entity_tracking"),
        ("fast_eval", False, "blimp_fast", "supplement_fast", "ewok_fast", "entity_tracking_fast"),
    ):
        folder = root / kind
        texts = iter([*sentences(2000, seed=int(full))])
        for name in ("adjunct_island", "anaphor_number_agreement"):
            good = [*ODD, *(next(texts) for _ in range(num_items))]
            pairs = [(text, shuffled(text, draw)) for text in good] + [(good[9], good[9])]  # equal scores
            fields = {"field": "syntax_semantics", "UID": name, "linguistics_term": "island"}
            rows = [{"sentence_good": one, "sentence_bad": other, **fields} for one, other in pairs]
            write_lines(folder / blimp / f"{name}.jsonl", rows)
        rows = [
            {"sentence_good": f"Who?\n{text}", "sentence_bad": f"Who? {shuffled(text, draw)}"}
            for text in (next(texts) for _ in range(num_items))
        ]
        write_lines(folder / supplement / "turn_taking.jsonl", rows)
        rows = []
        for _ in range(num_items):
            item = {
                "Domain": "agent-properties",
                "ContextType": "direct",
                "ContextDiff": "a",
                "TargetDiff": "b",
            }
            item |= {"Context1": next(texts), "Context2": next(texts), "Target1": next(texts)}
            rows.append(item | {"Target2": next(texts)})
        rows.append(rows[0] | {"Context2": rows[0]["Context1"]})  # equal scores
        write_lines(folder / ewok / "agent-properties.jsonl", rows)
        for name in ("regular", "ambiref", "move_contents") if full else ("regular",):
            rows = []
            for number in range(num_items):
                boxes = [f"Box {i} contains {text.lower()}" for i, text in enumerate(sentences(2, number))]
                prefix = " ".join(boxes) + " Box 1 contains"
                options = [f" the {thing}" for thing in draw.sample(["cat", "red house", "river", "boat"], 3)]
                if number % 5 == 4:
                    options[1] = " nothing"
                rows.append({"input_prefix": prefix, "options": options, "numops": number % 3})
            write_lines(folder / entity / f"{name}.jsonl", rows)
        if full:
            for name in ("base", "wugs", "wugs_dist-before", "wugs_dist-in-between"):
                rows = [
                    {
                        "prefix_acceptable": f"The {draw.choice(['cat', 'dog', 'bird'])}",
                        "prefix_unacceptable": f"The {draw.choice(['river', 'bridge', 'house'])}",
                        "property_phrase": f"can {next(texts).lower()}",
                    }
                    for _ in range(num_items)
                ]
                write_lines(folder / "comps" / f"comps_{name}.jsonl", rows)
        for name, num_solutions in (("global_piqa_parallel", 4), ("global_piqa_nonparallel", 2)):
            rows = [
                {
                    "prompt": next(texts),
                    **{
                        f"solution{i}": " ".join(next(texts) for _ in range(1 + i % 2))
                        for i in range(num_solutions)
                    },
                    "label": draw.randrange(num_solutions),
                    "example_id": f"{name}-{number}",
                }
                for number in range(num_items)
            ]
            write_lines(folder / name / "eng_latn.jsonl", rows)
        write_reading(folder / "reading" / "reading_data.csv", draw)
    write_lines(root / "full_eval" / "aoa" / "unused.jsonl", [])
    contexts = {
        word: [{"context": text} for text in [" ".join(s.split()[:3]) for s in sentences(4, i)] + ["", " a "]]
        for i, word in enumerate(["cat", "river", "teacher", "bridge", "x"])
    }
    (root / "full_eval" / "aoa" / "cdi_childes.json").write_text(json.dumps(contexts))
    return root


def write_reading(path: Path, draw: random.Random, num_sentences: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = ["RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound", "self_paced_reading_time"]
    brain = ["ELAN", "LAN", "N400", "P600", "EPNP", "PNP"]
    sizes = ["Subtlex_log10", "length", "context_length", "prev_length"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item", "word", "prev_item", "prev_word", *times, *brain, *sizes])
        for text in sentences(num_sentences, seed=8):
            words = text.split()
            for i, word in enumerate(words):
                context, before = " ".join(words[:i]), " ".join(words[: i - 1])
                shown = [context, " " + word] if i else ["", word]
                shown += [before or "None", words[i - 1]] if i else ["", ""]
                measured = [
                    f"{draw.gauss(250, 40):.2f}" if draw.random() > 0.1 else "" for _ in times + brain
                ]
                previous = len(words[i - 1]) if i else ""
                writer.writerow([*shown, *measured, f"{draw.gauss(3, 1):.3f}", len(word), i, previous])
