"""Show a run's results at a glance."""
