"""What is in a run's folder: every file name."""

RECORD_NAME = "training.json"
