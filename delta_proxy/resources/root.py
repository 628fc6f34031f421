"""The root of the Resource tree: parses each request once, hands it to the bucket or object it names."""

# getChild is twisted.web's name.
# ruff: noqa: N802
# mypy: allow-untyped-calls
from __future__ import annotations

from twisted.web.resource import Resource

from delta_proxy.resources.base import ErrorResource
from delta_proxy.resources.bucket import BucketResource, ServiceResource
from delta_proxy.resources.object import ObjectResource
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.resources.services import Services
from delta_proxy.s3.errors import S3Error
from delta_proxy.s3.request import parse_request


class RootResource(Resource):
    """`/` is the service, `/<bucket>` the bucket, everything below an object; virtual-host style likewise.

    The path that twisted.web splits and decodes is not used: the key comes from the raw request target.
    """

    def __init__(self, services: Services) -> None:
        super().__init__()
        self._services = services

    def getChild(self, path: bytes, request: EdgeRequest) -> Resource:
        """The leaf that answers this request."""
        try:
            s3 = parse_request(
                request.method,
                request.uri,
                request.raw_headers,
                self._services.settings.addressing,
            )
        except S3Error as error:
            return ErrorResource(error)
        if not s3.bucket:
            return ServiceResource(self._services, s3)
        return ObjectResource(self._services, s3) if s3.key else BucketResource(self._services, s3)
