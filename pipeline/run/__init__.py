"""The run folder: its names, checkpoints, weights, locks and records."""
