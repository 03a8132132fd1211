"""`make`: images into shards."""
