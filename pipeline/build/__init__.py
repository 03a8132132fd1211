"""The only wiring: a configuration in, running objects out."""
