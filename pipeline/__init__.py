"""Pretraining of Vision Transformers on WebDataset shards, with an evaluator in a process of its own."""

__version__ = "0.1.0"
