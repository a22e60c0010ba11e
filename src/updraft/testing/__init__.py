"""Tools for testing Updraft, and programs on it: instances of one's own, and faults."""
