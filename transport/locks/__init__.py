"""The locks on the doors: who is calling, what that caller may do, and how much of it.

One ASGI middleware (:mod:`duplex.transport.locks.guard`) stands in front of every door, so a door knows nothing of
keys, origins or limits. What it learns of a caller travels with the request's context (``caller.current_visit``).
"""
