"""`verify`: what is wrong with which sample."""
