"""Test every reader of foreign bytes with damaged ones: see docs/fuzzing.md."""
