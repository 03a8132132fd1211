"""Locate samples: folders of tars, local or remote, their index, and blocks of bytes."""
