"""Benchmarks that print a table: side by side in one run, on the same images and cores."""
