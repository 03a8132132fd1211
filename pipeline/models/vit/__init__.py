"""Build the Vision Transformer."""
