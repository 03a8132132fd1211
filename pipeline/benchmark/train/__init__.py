"""Compare ways to train the same model: time of a step, images per second, utilisation and memory."""
