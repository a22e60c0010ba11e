"""Streams between clients and runners.  Knows no store."""
