"""Protocols, intervals, paired tests and reports."""
