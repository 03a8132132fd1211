"""Our models next to those of timm and transformers, with the same weights: how far logits and gradients are apart."""
