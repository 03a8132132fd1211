"""Fine-tune weights: choose settings on a part of the training images, then train on all of them and test once."""
