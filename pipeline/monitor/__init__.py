"""Watch a run: alerts, status, the metrics file, Weights & Biases."""
