"""Show what a person reads while a command runs: lines of a log, progress, and streams that never hold a program up.

This package imports nothing heavy.
"""
