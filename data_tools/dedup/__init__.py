"""The command `dedup` finds near-copies between sets and inside one."""
