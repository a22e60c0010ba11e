"""How commands show things: tables, JSON, and lines for the person."""
