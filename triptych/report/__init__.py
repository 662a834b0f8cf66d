"""Reports of a finished run: one HTML file that needs no network, and a table in the terminal.

`data` holds the contents of a report, `html` fills the templates with them, `svg` draws, `curves`
reads loss curves, `terminal` prints the scores.
"""
