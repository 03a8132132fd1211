"""From positions of the order to batches on the device."""
