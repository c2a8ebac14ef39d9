"""Games: positions as arrays, many at once, with chance passed in."""
