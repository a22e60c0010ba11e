"""Pure decisions: who runs next, and where.  No I/O, no clock."""
