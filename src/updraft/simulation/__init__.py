"""The pool scheduler on virtual time: traces, other policies beside it, and what is measured."""
