"""Recommendations for people and programs; knows no web."""
