"""A module a kind of files, each with a list `KINDS`."""
