"""What could make a number better than it is: leaks, short cuts, ties, repeats, contamination."""
