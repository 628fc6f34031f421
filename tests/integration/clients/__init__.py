"""The client matrix: a small program for each client, run unmodified against the proxy and the store."""
