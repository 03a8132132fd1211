"""Turn positions of the order into batches on the device."""
