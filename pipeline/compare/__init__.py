"""Compare two runs by the files of their folders: what differs first, and whether the end differs by more than chance."""
