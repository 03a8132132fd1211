"""Every reader of foreign bytes against damaged ones: see docs/fuzzing.md."""
