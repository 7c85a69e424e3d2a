"""nano: the built-in captioner of plain rendered scenes, and the recipe that trained it."""
