# ruff: noqa: PT009
# mypy: allow-untyped-calls
"""Bodies that the kernel moves, under trial, which fails a test that leaves a reader, a timer or a socket."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.upstream.parts import Rig, ScriptedStore, answer, sends, until
from tests.upstream.test_splice import BODY, edge, received


class SpliceTests(TestCase):
    """A whole body, and a client that leaves in the middle of one."""

    timeout = 240

    def test_a_whole_body_leaves_nothing_behind(self) -> Deferred[None]:
        async def run() -> None:
            rig, store = Rig(), ScriptedStore(sends(answer(BODY)))
            async with edge(rig, store.endpoint) as proxy:
                self.assertEqual(await deferToThread(received, proxy.connect()), BODY)
            await store.close()

        return Deferred.fromCoroutine(run())

    def test_a_client_that_leaves_leaves_nothing_behind(self) -> Deferred[None]:
        async def run() -> None:
            rig, store = Rig(), ScriptedStore(sends(answer(BODY)))
            async with edge(rig, store.endpoint) as proxy:
                client = proxy.connect(receive=65536)
                await until(lambda: bool(proxy.spliced))
                client.close()
                await until(lambda: len(proxy.records) == 1)
                self.assertTrue(proxy.records[0].aborted)
            await store.close()

        return Deferred.fromCoroutine(run())
