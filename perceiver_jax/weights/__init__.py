"""Models with their weights, the released models, and weights in foreign names and files."""
