"""Our models next to the same models of timm and transformers, with the same weights: how far logits and gradients are apart."""
