"""Start processes from a launcher's or scheduler's environment, pass stop signals on to them, and end them. Light imports
only.
"""
