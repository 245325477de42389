"""The small backbone that the project trains itself, with a token for every title."""
