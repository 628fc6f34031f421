"""Large bodies from one plain socket to another without passing through the process: splice(2) by a pipe.

A body whose length is known goes on by the ordinary way until the head of the answer has left the process;
from there on the kernel moves pages from the store's socket into a pipe and out to the client's. What the
relay keeps stays kept: a client that is full pauses the relay, its time-outs run as ever, every byte is
counted when it has left the pipe, and a body that the store cuts is reported as such when the pipe is empty.
Where the kernel refuses, or no pipe is free, the rest goes by the ordinary way.

Source: splice(2), pipe(7); F_SETPIPE_SZ in fcntl(2).
"""

# The names are those of Twisted's interfaces.
# ruff: noqa: N802
# mypy: allow-untyped-calls
from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from attrs import frozen
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPushProducer, IReactorFDSet, IReadDescriptor, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from delta_proxy.upstream.http1 import Connection

LEAST_BYTES = 256 * 1024
"""Below this the ordinary way costs less: taking over two sockets takes a dozen system calls."""

_PIPE_BYTES = 1024 * 1024
_MOST_PIPES = 64
_KEPT_PIPES = 4
_ROUNDS = 8
_NOT_HERE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})
_splice: Callable[..., int] = getattr(os, "splice", None)  # type: ignore[assignment]
_FLAGS = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)


class Sink(Protocol):
    """The client's end: a plain socket, and those who must know what becomes of it."""

    @property
    def socket(self) -> socket.socket:
        """Where the bytes go."""
        ...

    def flush(self) -> bool:
        """Send what was written before; whether nothing of it is left in the process."""
        ...

    def moved(self, count: int) -> None:
        """That many bytes have gone to the socket."""
        ...

    def full(self) -> None:
        """The socket takes no more for now."""
        ...

    def free(self) -> None:
        """The socket has taken all there was."""
        ...

    def abort(self) -> None:
        """Reset the connection: it does not take bytes any more."""
        ...


@runtime_checkable
class SpliceConsumer(Protocol):
    """A consumer whose bytes go to a plain socket unaltered."""

    def splice_sink(self) -> Sink | None:
        """The socket's end, None when the bytes must be written; begins the answer if need be."""
        ...


@frozen
class Pipe:
    """The two ends of a pipe, empty unless in use."""

    out: int
    into: int

    def close(self) -> None:
        """Give both ends back."""
        os.close(self.out)
        os.close(self.into)


class Splicing:
    """The pipes of a process, at most 64 and a MiB each: a client that does not read may keep one full.

    `least` is the number of bytes from which on a body is worth it.
    """

    def __init__(self, reactor: IReactorFDSet, *, least: int = LEAST_BYTES, most: int = _MOST_PIPES) -> None:
        self.reactor = reactor
        self.least = least
        self._here = _splice is not None
        self._room = most
        self._idle: list[Pipe] = []

    def take(self) -> Pipe | None:
        """An empty pipe, None when there is none to be had."""
        if self._idle:
            return self._idle.pop()
        if not self._here or not self._room:
            return None
        try:
            pipe = Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return None
        self._room -= 1
        with contextlib.suppress(OSError):
            # Refused to a user who has many already: then it is a smaller one.
            fcntl.fcntl(pipe.into, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return pipe

    def give(self, pipe: Pipe, *, empty: bool) -> None:
        """Take a pipe back."""
        if empty and self._here and len(self._idle) < _KEPT_PIPES:
            self._idle.append(pipe)
        else:
            pipe.close()
            self._room += 1

    def renounce(self) -> None:
        """This kernel does not do it."""
        self._here = False
        self.close()

    def close(self) -> None:
        """Close the pipes that wait."""
        while self._idle:
            self._idle.pop().close()
            self._room += 1


@implementer(IReadDescriptor, IWriteDescriptor)
class _Watch:
    """A duplicate of a socket, for the reactor to watch in place of the transport."""

    def __init__(
        self, watched: socket.socket, ready: Callable[[], None], lost: Callable[[Failure], None]
    ) -> None:
        self._fd = os.dup(watched.fileno())
        self._ready = ready
        self._lost = lost

    def fileno(self) -> int:
        """The duplicate; -1 when closed."""
        return self._fd

    def logPrefix(self) -> str:
        """As the reactor asks for."""
        return "splice"

    def doRead(self) -> None:
        """The socket has bytes, or has ended."""
        self._ready()

    def doWrite(self) -> None:
        """The socket takes bytes, or has ended."""
        self._ready()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor found the socket broken."""
        self._lost(reason)

    def close(self) -> None:
        """Give the duplicate back; it must not be watched any more."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)


@implementer(IPushProducer)
class Pump:
    """Moves the rest of a body from a connection to a sink. To the relay it is what the connection was.

    `received` is told how many bytes have gone to the sink. OSError when no descriptor is left.
    """

    def __init__(
        self, splicing: Splicing, source: Connection, sink: Sink, received: Callable[[int], None]
    ) -> None:
        assert source.plain is not None
        self._splicing = splicing
        self._reactor: Any = splicing.reactor
        self._source = source
        self._sink = sink
        self._received = received
        self._pipe: Pipe | None = None
        self._inside = 0
        self._blocked = False
        self._paused = False
        self._over = False
        self._from = _Watch(source.plain, self._run, self._cut)
        try:
            self._to = _Watch(sink.socket, self._drain, self._sink_lost)
        except OSError:
            self._from.close()
            raise

    def start(self) -> None:
        """Take the two sockets over."""
        self._source.pauseProducing()
        if self._sink.flush():
            self.resumeProducing()
        else:
            self._block()

    def pauseProducing(self) -> None:
        """Take nothing more from the store."""
        if not self._over:
            self._paused = True
            self._reactor.removeReader(self._from)

    def resumeProducing(self) -> None:
        """Go on."""
        if not self._over and not self._blocked:
            self._paused = False
            self._reactor.addReader(self._from)
            self._run()

    def stopProducing(self) -> None:
        """Nobody wants the rest: abort the connection to the store."""
        if not self._over:
            self._close()
            self._source.stopProducing()

    def _run(self) -> None:
        """Move what there is, for some rounds: others have their turn too."""
        for _ in range(_ROUNDS):
            if self._over or self._blocked or self._paused or not self._fill():
                break
            self._empty()
        self._give_pipe()

    def _fill(self) -> bool:
        """Take bytes from the store into the pipe; whether there were any."""
        pipe = self._pipe = self._pipe or self._splicing.take()
        if pipe is None:
            self._hand_back()
            return False
        try:
            self._inside = _splice(
                self._from.fileno(), pipe.into, min(self._source.remaining or 0, _PIPE_BYTES), flags=_FLAGS
            )
        except BlockingIOError:
            return False
        except OSError as error:
            reason = Failure(ConnectionLost(str(error)))
            self._failed(error, functools.partial(self._cut, reason))
            return False
        if not self._inside:
            self._cut(Failure(ConnectionDone()))
        return self._inside > 0

    def _empty(self) -> None:
        """Send on what is in the pipe, as far as the client takes it."""
        while self._inside and self._pipe is not None:
            try:
                count = _splice(self._pipe.out, self._to.fileno(), self._inside, flags=_FLAGS)
            except BlockingIOError:
                self._block()
                return
            except OSError as error:
                self._failed(error, self._sink_lost)
                return
            self._count(count)

    def _count(self, count: int) -> None:
        self._inside -= count
        self._received(count)
        self._sink.moved(count)
        if count == self._source.remaining:
            self._close()
            self._set_free()
        self._source.took(count)

    def _block(self) -> None:
        if not self._blocked:
            self._blocked = True
            self._reactor.addWriter(self._to)
            # It pauses the relay, which pauses this.
            self._sink.full()

    def _drain(self) -> None:
        """The client takes bytes again: first those in the pipe."""
        if self._over or not self._sink.flush():
            return
        self._empty()
        if not self._over and not self._inside:
            self._reactor.removeWriter(self._to)
            self._set_free()

    def _set_free(self) -> None:
        if self._blocked:
            self._blocked = False
            # It resumes the relay, which resumes this.
            self._sink.free()

    def _failed(self, error: OSError, broken: Callable[[], None]) -> None:
        if error.errno in _NOT_HERE:
            self._splicing.renounce()
            self._hand_back()
        else:
            broken()

    def _sink_lost(self, _: Failure | None = None) -> None:
        """The client is gone; its transport tells the relay, which stops this."""
        self._blocked = True
        self._reactor.removeReader(self._from)
        self._reactor.removeWriter(self._to)
        self._sink.abort()

    def _cut(self, reason: Failure) -> None:
        self._close()
        self._source.broken(reason)

    def _hand_back(self) -> None:
        """Let the rest go the ordinary way, after what is in the pipe."""
        rest = b""
        while self._inside and self._pipe is not None:
            part = os.read(self._pipe.out, self._inside)
            self._inside -= len(part)
            rest += part
        self._close()
        self._source.take_back()
        self._set_free()
        self._source.resume_with(rest)

    def _give_pipe(self) -> None:
        pipe = self._pipe
        if pipe is not None and not self._inside:
            self._pipe = None
            self._splicing.give(pipe, empty=True)

    def _close(self) -> None:
        self._over = True
        self._reactor.removeReader(self._from)
        self._reactor.removeWriter(self._to)
        self._from.close()
        self._to.close()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self._splicing.give(pipe, empty=not self._inside)
