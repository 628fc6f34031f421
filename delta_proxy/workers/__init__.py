"""Several processes on one port: a parent that owns the socket, and the workers that answer."""
