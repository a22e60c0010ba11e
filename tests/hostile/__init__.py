"""Strangers, and users with bad intentions, at a team's server over TLS on loopback."""
