"""Turn encoded bytes into the pixels that a model sees."""
