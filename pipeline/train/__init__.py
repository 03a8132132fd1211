"""Train: the Lightning module, ZeRO, and the work of each step."""
