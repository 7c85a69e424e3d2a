"""One file for each checkpoint family; what they share lives beside this folder."""
