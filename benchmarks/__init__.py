"""Speeds of Updraft, measured beside a peer or the physical floor in the same run.

Standard library only, so that it starts from any Python 3.11 or newer. `README.md` says how each
figure is taken; `python -m benchmarks --help` how to run.
"""
