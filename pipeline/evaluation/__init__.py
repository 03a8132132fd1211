"""Downstream accuracy of frozen features, in a process that never touches training."""
