"""Take weights from, and give them to, timm, transformers, Google's .npz files and ONNX."""
