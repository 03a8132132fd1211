"""Define a run's configuration: its schema, its reading, and its meaning in steps."""
