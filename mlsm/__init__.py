"""Pre-training language models on latent concepts: MLM teacher, sparse codes, concept student, token head."""

__version__ = "0.1.0"
