"""What `import updraft` gives: a client of the API, and of the raw protocol."""
