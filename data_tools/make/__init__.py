"""The command `make` packs images into shards."""
