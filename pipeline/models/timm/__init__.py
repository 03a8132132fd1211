"""Build any backbone of the library timm (huggingface/pytorch-image-models), to be trained from random weights."""
