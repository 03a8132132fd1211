"""Any backbone of the library timm (huggingface/pytorch-image-models), trained from random weights."""
