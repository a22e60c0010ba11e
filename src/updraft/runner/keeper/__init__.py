"""The keeper: spawns tasks and owns their processes, ptys, pipes and spools.

Standard library only, and it hardly ever changes: tasks outlive everything but their keeper.
"""
