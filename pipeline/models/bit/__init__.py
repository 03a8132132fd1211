"""Build ResNets with weight standardisation and group normalisation: BiT as released, and its post-activation variant."""
