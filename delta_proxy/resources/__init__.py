"""The twisted.web Resource tree: bucket, then key."""
