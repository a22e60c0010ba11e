"""Alembic's environment and the revisions, one a schema change."""
