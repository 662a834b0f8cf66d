"""The demo: from images to measured models, an index and a report, in the minutes that one has."""
