"""What operators look at: measures, the loops' beats, logs and traces.  Knows no other part."""
