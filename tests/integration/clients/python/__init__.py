"""The programs of clients that are Python packages."""
