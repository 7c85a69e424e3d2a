"""The version of EdgePrism."""

__version__ = "0.1.0"
