"""Models by name: the catalogue and the built-in `nano`."""
