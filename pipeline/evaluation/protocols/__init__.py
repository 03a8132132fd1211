"""Protocols: from features of two splits to accuracies."""
