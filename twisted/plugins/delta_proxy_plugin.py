# mypy: allow-untyped-calls
"""Tells twistd of the service `delta-s3-proxy`."""

from twisted.application.service import ServiceMaker

delta_s3_proxy = ServiceMaker(
    "delta-s3-proxy",
    "delta_proxy.service",
    "An S3 endpoint that shows each principal only the Delta partitions it was granted.",
    "delta-s3-proxy",
)
