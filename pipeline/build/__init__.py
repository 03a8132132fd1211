"""Wire a run: a configuration in, running objects out. No other package does this."""
