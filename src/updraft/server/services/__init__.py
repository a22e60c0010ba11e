"""Authorise, validate, write: the only way in, for the API and for the loops."""
