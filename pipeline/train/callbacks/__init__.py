"""Watch, guard and save a training."""
