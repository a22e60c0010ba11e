"""The server: control (API, services, loops) and relay."""
