"""Vision Transformers, in torch alone."""
