"""Start processes from a launcher's or scheduler's environment, signal them, and end them. Nothing heavy is imported."""
