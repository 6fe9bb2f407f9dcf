"""Training: objectives, optimiser, plan of a run, updates that diverge."""
