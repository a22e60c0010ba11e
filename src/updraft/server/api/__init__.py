"""What comes in: HTTP routes, and the raw frames of clients and agents.  Thin."""
