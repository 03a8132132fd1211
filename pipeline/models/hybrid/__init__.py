"""Build hybrids: the Transformer encoder of ViT on the feature map of a ResNet."""
