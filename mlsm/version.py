"""The version of this package, for config.json, for --version and for Python."""

__version__ = "0.1.0"
