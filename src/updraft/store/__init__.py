"""Tables, named queries and migrations; SQLite and PostgreSQL behind one interface."""
