"""Engines: models that are in a folder or on the hub, as what the endpoints serve (`penstock.models`).

Made of the public names alone, so that everything here could be written outside. Libraries are imported when a model is
made, in the worker that runs it: to import this costs nothing and needs none of them.
"""
