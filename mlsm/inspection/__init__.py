"""What Python asks a model for: tensors of texts, concepts one by one, and interventions on concepts."""
