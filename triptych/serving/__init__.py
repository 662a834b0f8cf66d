"""Models in use: what `triptych.load` returns, and how it reads what it is given."""
