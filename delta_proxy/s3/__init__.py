"""The S3 protocol as pure values and functions: no Twisted, no I/O."""
