"""The documentation is run: its examples do what it shows, and its lists are the code's."""
