"""What can be looked at: concepts and runs as tables, pictures and pages of one file."""
