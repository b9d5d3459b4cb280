"""Simulation: the scheduler alone on a heap, and the whole runtime on a virtual clock, under seeded storms."""
