"""Measure the downstream accuracy of frozen features, in a process that never touches training."""
