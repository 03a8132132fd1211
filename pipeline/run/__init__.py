"""The run folder has names, checkpoints, weights, locks and records; this package reads and writes them."""
