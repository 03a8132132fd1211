"""What watches, guards and saves a training."""
