"""Delta S3 Proxy: an S3 endpoint that shows each principal only the partitions it was granted."""
