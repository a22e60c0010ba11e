"""Fidelity: run through `urun`, a program shows the same bytes, exit code and terminal as bare."""
