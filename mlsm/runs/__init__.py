"""Runs on disk: records, checkpoints, teachers, and Hugging Face's formats."""
