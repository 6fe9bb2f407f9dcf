"""Text that the tests make: sentences of a small grammar, within reach of a few thousand weights."""

import random
from pathlib import Path

_SUBJECTS = [
    "the cat",
    "a dog",
    "my sister",
    "the old king",
    "her teacher",
    "every child",
    "one bird",
    "the tall man",
]
_VERBS = ["sees", "likes", "finds", "hears", "follows", "paints", "remembers", "calls"]
_OBJECTS = [
    "the red house",
    "a small boat",
    "the river",
    "his brother",
    "an apple",
    "the long road",
    "two stones",
]
_ENDINGS = ["today", "in the morning", "near the bridge", "again", "without a word", "after the rain"]


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    words = (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS)
    return [" ".join(draw.choice(choices) for choices in words).capitalize() + "." for _ in range(count)]


def write_corpus(path: Path, count: int = 600, seed: int = 0) -> Path:
    path.write_text("\n".join(sentences(count, seed)) + "\n", encoding="utf-8")
    return path


def text_flags(folder: Path) -> list[str]:
    """Flags that name the text in text.txt of a folder, and a cache beside it."""
    return [f"--corpus={folder / 'text.txt'}", f"--cache-dir={folder / 'cache'}"]


def small_flags(folder: Path, **extra: object) -> list[str]:
    """Flags of a small text, which is written to a folder, and `extra` flags by their names."""
    write_corpus(folder / "text.txt", count=200)
    flags = {"max-length": 48, "device": "cpu"} | extra
    return [*text_flags(folder), *(f"--{name}={value}" for name, value in flags.items())]


# A model of two layers on that text: an update takes some milliseconds.
NANO_FLAGS = [
    "--width=16", "--depth=2", "--num-heads=2", "--ffn-width=32", "--vocab-size=80", "--max-length=32",
    "--batch-size=8", "--token-budget=96", "--num-steps=6", "--checkpoint-every=2", "--log-every=2",
]  # fmt: skip
