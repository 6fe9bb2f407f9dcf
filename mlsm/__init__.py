"""Pre-training language models on latent concepts: MLM teacher, sparse codes, concept student, token head.

From Python: `mlsm.load("runs/lsm-random")` (see mlsm/api.py). Importing this package imports nothing else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlsm.version import __version__

if TYPE_CHECKING:
    from mlsm.api import Model

__all__ = ["__version__", "load"]


def load(
    directory: str | os.PathLike[str],
    *,
    device: str = "auto",
    dictionary: str | os.PathLike[str] | None = None,
    teacher: str | os.PathLike[str] | None = None,
) -> Model:
    """A trained model to ask for concepts, words and scores: from a run directory, one of its checkpoints, or
    an exported directory. See `mlsm.api.Model` for the arguments and errors.
    """
    from mlsm.api import Model

    return Model(directory, device=device, dictionary=dictionary, teacher=teacher)
