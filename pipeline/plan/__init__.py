"""What a run will need and cost, computed on paper: no data, no GPU."""
