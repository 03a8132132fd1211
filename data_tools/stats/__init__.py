"""The command `stats` counts what a corpus holds."""
