"""What Updraft talks about: frozen values, their states and the table of moves.  No I/O."""
