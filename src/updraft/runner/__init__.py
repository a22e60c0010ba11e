"""Updraft's presence on a node: a keeper that owns the processes, and an agent that talks."""
