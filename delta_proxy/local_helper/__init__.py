"""The local helper: an HTTP proxy beside a client that follows redirects on the client's behalf."""
