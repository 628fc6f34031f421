"""The root of the Resource tree: parses each request once, hands it to the bucket or object it names."""

# isLeaf is twisted.web's name.
# ruff: noqa: N815
# mypy: allow-untyped-calls
from __future__ import annotations

from twisted.web.resource import Resource

from delta_proxy.resources.base import ErrorResource, S3Resource
from delta_proxy.resources.bucket import BucketResource, ServiceResource
from delta_proxy.resources.bulk import BulkResource
from delta_proxy.resources.cors import PreflightResource, mark
from delta_proxy.resources.forward import ForwardResource
from delta_proxy.resources.object import ObjectResource
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.resources.services import Services
from delta_proxy.resources.sts import StsResource
from delta_proxy.resources.writes import WriteResource
from delta_proxy.s3.errors import S3Error
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.request import parse_request


class RootResource(Resource):
    """`/` is the service, `/<bucket>` the bucket, everything below an object; virtual-host style likewise.

    The key comes from the raw request target: twisted.web need not split the path, nor walk a tree.
    """

    isLeaf = True

    def __init__(self, services: Services) -> None:
        super().__init__()
        self._services = services

    @property
    def services(self) -> Services:
        """What requests are answered with now."""
        return self._services

    def replace(self, services: Services) -> None:
        """Answer the requests that come from now on with these; those under way go on with the old."""
        self._services = services

    def prepare(self, request: EdgeRequest) -> None:
        """What every answer to this request holds, refusals included; S3Site calls it before the rest."""
        mark(request, self._services.settings.cors)

    def render(self, request: EdgeRequest) -> int:
        """Let the resource that the request names answer it."""
        try:
            leaf = self._leaf(request)
        except S3Error as error:
            leaf = ErrorResource(error)
        return leaf.render(request)

    def _leaf(self, request: EdgeRequest) -> S3Resource | ErrorResource | PreflightResource | ForwardResource:
        services = self._services
        if request.method == b"OPTIONS":
            return PreflightResource(services.settings.cors)
        if services.forward is not None and services.forward.takes(request):
            return ForwardResource.of(services, services.forward, request)
        s3 = parse_request(request.method, request.uri, request.headers, services.settings.addressing)
        if s3.operation is Operation.STS and services.sts is not None:
            return StsResource(services, services.sts, s3)
        if not s3.bucket:
            return ServiceResource(services, s3)
        if s3.operation.is_write:
            return WriteResource(services, s3) if s3.key else BulkResource(services, s3)
        return ObjectResource(services, s3) if s3.key else BucketResource(services, s3)
