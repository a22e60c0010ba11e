"""Where bytes are kept: task output now; chunks, files and checkpoints as they come."""
