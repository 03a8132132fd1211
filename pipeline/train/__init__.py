"""Training: the Lightning module, ZeRO, and what is done at each step."""
