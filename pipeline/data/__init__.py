"""Turn tar shards into batches, in an order that is a pure function of (index, seed, position)."""
