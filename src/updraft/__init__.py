"""Updraft runs any command, function or application on any pool of compute as if it were local."""

__version__ = "0.1.0"
