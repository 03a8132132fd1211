"""A run's results at a glance."""
