"""A generated shop whose truth is known: see ``docs/planted.md``.

Imports nothing, so that the configuration can be read without the oracle and its compiled kernels.
"""
