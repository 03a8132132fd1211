"""The command `verify` reports what is wrong with which sample."""
