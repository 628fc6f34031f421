"""The real S3 behind the proxy."""
