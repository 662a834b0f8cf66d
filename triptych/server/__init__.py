"""Models over HTTP: the interface, micro-batching, limits and the page."""
