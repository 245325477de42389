"""Tokens -> state -> scores -> ranking: the backbone and its two heads."""
