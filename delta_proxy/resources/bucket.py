"""The service and the bucket: ListBuckets, HeadBucket, GetBucketLocation, ListObjects v1 and v2."""

from __future__ import annotations

from collections.abc import Sequence

from delta_proxy.access.identity import Principal
from delta_proxy.delta.gate import GrantedTable
from delta_proxy.delta.views import RefusedView
from delta_proxy.resources.base import XML, Answer, AnyAnswer, S3Resource, annotate
from delta_proxy.resources.listing import ListedTable, list_page
from delta_proxy.resources.refusals import denied
from delta_proxy.resources.server import EdgeRequest
from delta_proxy.s3 import xml
from delta_proxy.s3.errors import NotImplementedByProxy
from delta_proxy.s3.listing import ListQuery
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.xml import ListResult

REGION_HEADER = "x-amz-bucket-region"

CREATED = "2006-03-01T00:00:00.000Z"
"""A virtual bucket was never created; clients want a date all the same."""


class ServiceResource(S3Resource):
    """`/`: the one bucket."""

    async def answer(self, principal: Principal, request: EdgeRequest) -> AnyAnswer:
        """ListBuckets; the rest of the service level is not implemented."""
        if self.s3.operation is not Operation.LIST_BUCKETS:
            raise NotImplementedByProxy()
        return Answer(200, XML, xml.list_buckets([self.services.settings.addressing.bucket], created=CREATED))


class BucketResource(S3Resource):
    """`/<bucket>`: what it is, where it is, what is in it."""

    async def answer(self, principal: Principal, request: EdgeRequest) -> AnyAnswer:
        """The answer to an operation on the bucket."""
        region = self.services.settings.region
        match self.s3.operation:
            case Operation.HEAD_BUCKET:
                return Answer(200, ((REGION_HEADER, region),))
            case Operation.GET_BUCKET_LOCATION:
                return Answer(200, XML, xml.bucket_location(region))
            case Operation.LIST_OBJECTS | Operation.LIST_OBJECTS_V2:
                return await self._list(principal, request)
            case _:
                raise NotImplementedByProxy()

    async def _list(self, principal: Principal, request: EdgeRequest) -> Answer:
        query = ListQuery.parse(self.s3)
        tables = [self._listed(table) for table in self.services.gate.tables(principal)]
        result = await listed(tables, query, request)
        document = xml.list_objects_v2 if query.version == 2 else xml.list_objects_v1
        body = document(result, query, bucket=self.services.settings.addressing.bucket)
        return Answer(200, ((REGION_HEADER, self.services.settings.region), *XML), body)

    def _listed(self, table: GrantedTable) -> ListedTable:
        gate = self.services.gate
        return ListedTable(
            table.alias, gate.listable(table.alias), lambda prefix: gate.visibility(table, prefix)
        )


async def listed(tables: Sequence[ListedTable], query: ListQuery, request: EdgeRequest) -> ListResult:
    """The page that a query asks for. Raises AccessDenied for a closed table, and tells the audit log why."""
    try:
        return await list_page(tables, query, query.after or None)
    except RefusedView as refused:
        annotate(request, decision=refused.reason.name.lower(), reason=refused.reason.value)
        raise denied(refused.reason) from None
