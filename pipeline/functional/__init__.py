"""Compute pure tensor math: no state, no I/O, no randomness that is not passed in."""
