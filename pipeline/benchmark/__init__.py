"""Benchmarks print a table: they compare side by side in one run, on the same images and cores."""
