"""Building software through Updraft."""
