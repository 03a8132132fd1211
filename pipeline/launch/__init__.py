"""From a launcher's or scheduler's environment to processes that start, are told to stop, and end. Imports nothing heavy."""
