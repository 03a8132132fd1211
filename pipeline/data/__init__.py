"""From tar shards to batches, in an order that is a pure function of (index, seed, position)."""
