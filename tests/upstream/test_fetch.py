# mypy: allow-untyped-calls
"""A small document from the web: whole, small enough and in time, or not at all."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from delta_proxy.upstream.client import Upstream
from delta_proxy.upstream.fetch import NotFetched, fetch
from delta_proxy.upstream.relay import Silence
from tests.helpers import result_of, start

URL = "https://id.example.com/keys"


class Transport:
    def __init__(self) -> None:
        self.stopped = False

    def stopProducing(self) -> None:  # noqa: N802
        self.stopped = True


class Response:
    """An answer whose body the test delivers."""

    length = 0
    headers = Headers()

    def __init__(self, code: int = 200) -> None:
        self.code = code
        self.transport = Transport()
        self.body: Any = None

    def deliverBody(self, protocol: Any) -> None:  # noqa: N802
        self.body = protocol
        protocol.makeConnection(self.transport)


class Agent:
    def __init__(self, outcome: Deferred[Any]) -> None:
        self._outcome = outcome

    def request(self, method: bytes, uri: bytes, headers: Headers, body: object) -> Deferred[Any]:
        assert (method, uri) == (b"GET", URL.encode())
        return self._outcome


def fetching(outcome: Deferred[Any], clock: Clock | None = None) -> Deferred[bytes]:
    upstream = Upstream(
        cast(Any, Agent(outcome)), clock or Clock(), lambda *_: Deferred(), lambda: 0.0, Silence()
    )
    return start(fetch(upstream, URL, limit=10))


@pytest.mark.parametrize("end", [ResponseDone, PotentialDataLoss])
def test_a_whole_body_is_given(end: type[Exception]) -> None:
    response = Response()
    found = fetching(succeed(response))
    response.body.dataReceived(b"12345")
    response.body.dataReceived(b"67890")
    response.body.connectionLost(Failure(end()))
    assert result_of(found) == b"1234567890"


def test_a_body_that_is_too_large_is_aborted() -> None:
    response = Response()
    found = fetching(succeed(response))
    response.body.dataReceived(b"12345678901")
    assert response.transport.stopped
    response.body.connectionLost(Failure(ConnectionLost()))
    with pytest.raises(NotFetched):
        result_of(found)


def test_a_body_that_is_cut_is_none() -> None:
    response = Response()
    found = fetching(succeed(response))
    response.body.dataReceived(b"123")
    response.body.connectionLost(Failure(ConnectionLost()))
    with pytest.raises(NotFetched):
        result_of(found)


def test_an_answer_that_stands_still_is_given_up() -> None:
    response, clock = Response(), Clock()
    found = fetching(succeed(response), clock)
    clock.advance(3600)
    with pytest.raises(NotFetched):
        result_of(found)
    assert response.transport.stopped


def test_no_redirect_is_followed() -> None:
    response = Response(302)
    response.headers = Headers({"Location": ["http://169.254.169.254/"]})
    with pytest.raises(NotFetched):
        result_of(fetching(succeed(response)))


@pytest.mark.parametrize("outcome", [302, 404, 500, None])
def test_anything_but_200_is_none(outcome: int | None) -> None:
    answer: Deferred[Any] = fail(ConnectionLost()) if outcome is None else succeed(Response(outcome))
    with pytest.raises(NotFetched):
        result_of(fetching(answer))
