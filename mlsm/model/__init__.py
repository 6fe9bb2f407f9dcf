"""Models: the DeBERTa encoders, the language model on them, and its loss."""
