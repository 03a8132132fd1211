"""Tools that make and index corpora of WebDataset shards."""
