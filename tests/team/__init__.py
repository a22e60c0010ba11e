"""A team's server, its runners and its users, on machines of their own joined by a network.

team.py makes them; `everything` a test needs is reached through `Team`.
"""
