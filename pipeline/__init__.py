"""Pretraining of Vision Transformers on WebDataset shards, with an evaluator beside it."""

__version__ = "0.1.0"
