"""Weights of other programs: reading their files, recognising who wrote them, and giving them our variables' names."""
