"""Compute what a run will need and cost on paper: without data, without a GPU."""
