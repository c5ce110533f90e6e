"""The version of the package; setup.py runs this file."""

__version__ = "0.1.0"
