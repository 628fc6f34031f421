"""The operator's command line, `delta-s3-proxy-admin`."""
