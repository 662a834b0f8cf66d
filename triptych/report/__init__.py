"""What a person sees of a finished run: a web page without a network, and a table in the terminal.

`data` is what a report says, `html` writes it as one file (`svg` draws, `images` shows what the
model did with single images, `markup` escapes), `terminal` prints the same scores, `readers`
reads loss curves, `machine` tells where the run took place.
"""
