"""The command `plan` computes what preparing a corpus takes."""
