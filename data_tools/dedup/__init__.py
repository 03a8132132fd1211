"""`dedup`: near-copies between sets and inside one."""
