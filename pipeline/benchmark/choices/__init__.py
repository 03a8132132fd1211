"""`benchmark choices`: train small models that differ in one architectural choice, by several seeds, and compare them."""
