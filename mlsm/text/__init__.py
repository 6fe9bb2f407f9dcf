"""Text: tokenizer, corpora on disk, sequences, micro-batches, masking."""
