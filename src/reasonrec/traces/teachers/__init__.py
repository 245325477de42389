"""Who writes thoughts: one protocol, four teachers."""
