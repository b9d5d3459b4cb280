"""The child's side of a process service, and what both sides share: frames and shared memory.

Only the standard library, relative imports, and nothing of the rest of penstock: a child may run in an interpreter that
has none of it. `__main__.py` is run by its path.
"""
