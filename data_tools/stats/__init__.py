"""`stats`: what a corpus holds."""
