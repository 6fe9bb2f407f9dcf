"""The tasks of BabyLM 2026, measured as the organisers' pipeline measures them."""
