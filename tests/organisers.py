"""Runs in an environment of the organisers' pipeline (babylm-org/babylm-eval, July 2026) and in its folder
`strict`, and prints as JSON what that code computes. It imports nothing of this project.

    PYTHON organisers.py logits DIRECTORY 0,5,6,1
    PYTHON organisers.py zero-shot DIRECTORY TASK DATA_FOLDER
    PYTHON organisers.py reading DIRECTORY FILE
    PYTHON organisers.py aoa DIRECTORY FILE
"""

import argparse
import csv
import json
import math
import pathlib
import sys
import types

import torch
from transformers import AutoModelForMaskedLM, AutoProcessor

sys.path.insert(0, ".")
for name in ("datasets", "aiohttp"):  # imported for images only
    sys.modules.setdefault(name, types.SimpleNamespace(load_dataset=None, Dataset=None, ClientTimeout=None))


def logits(directory: str, ids: str) -> object:
    model = AutoModelForMaskedLM.from_pretrained(directory).eval()
    return model(torch.tensor([[int(i) for i in ids.split(",")]])).logits[0].tolist()


def zero_shot(directory: str, task: str, folder: str) -> object:
    """The scores of the candidates by text, as rank_and_evaluate sees them, and the predictions."""
    from evaluation_pipeline.sentence_zero_shot import compute_results as code
    from evaluation_pipeline.sentence_zero_shot.dataset import get_dataloader

    args = argparse.Namespace(
        data_path=pathlib.Path(folder),
        task=task,
        model_path_or_name=directory,
        backend="mlm",
        images_path=None,
        image_template=None,
        image_split=None,
        revision_name=None,
        batch_size=64,
        non_causal_batch_size=64,
        full_sentence_scores=False,
        save_predictions=True,
    )
    seen: list[tuple[list[str], list[float]]] = []
    rank = code.rank_and_evaluate

    def spy(args, stats, log_probs, raw_sentences, *rest):
        for raw, row in zip(raw_sentences, torch.stack(log_probs[1.0], dim=1).tolist(), strict=True):
            seen.append((raw["sentences"], row))
        return rank(args, stats, log_probs, raw_sentences, *rest)

    code.rank_and_evaluate = spy
    model = AutoModelForMaskedLM.from_pretrained(directory).eval()
    _, predictions = code.compute_results(args, model, get_dataloader(args), [1.0])
    return {"scores": seen, "predictions": predictions[1.0]}


def reading(directory: str, file: str) -> object:
    """[surprisal of the word, of the word before] of each row."""
    from evaluation_pipeline.reading.evaluation_functions import get_p2_mlm

    model = AutoModelForMaskedLM.from_pretrained(directory).eval()
    tokenizer = AutoProcessor.from_pretrained(directory)
    rows = []
    with open(file, encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            pairs = [(row["item"] or "None", row["word"])]
            pairs += [(row["prev_item"], row["prev_word"])] if row["prev_item"] not in ("", "None") else []
            rows.append([-math.log(get_p2_mlm(*pair, model, tokenizer)[0]) for pair in pairs])
    return rows


def aoa(directory: str, file: str) -> object:
    """[word, its surprisal] of each word in each context."""
    from evaluation_pipeline.AoA_word.eval_util import StepConfig, load_eval
    from evaluation_pipeline.AoA_word.evaluation_functions import StepSurprisalExtractor

    words, contexts = load_eval(pathlib.Path(file), 0)
    config = StepConfig(track="strict-small", debug=False)
    config.steps, config.word_counts = ["main"], [0]
    extractor = StepSurprisalExtractor(config=config, model_name=directory, backend="mlm", device="cpu")
    rows = extractor.analyze_steps(contexts=contexts, target_words=words)["results"]
    return [(row["target_word"], row["surprisal"]) for row in rows]


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    with torch.no_grad():
        result = globals()[name.replace("-", "_")](*arguments)
    print("\n" + json.dumps(result))
