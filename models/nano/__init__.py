"""nano: the built-in captioner of drawn pictures, and the recipe that trained it."""
