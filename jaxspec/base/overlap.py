"""Work that goes on in another thread: items that are made ahead of their use, or used behind.

`ahead` goes through an iterable in a thread, so that the next items are made while one is in use.
`Behind` hands items to a function in a thread, such as one that writes. Both hold a few items only,
raise what went wrong in the thread where the caller sees it, and end their thread in any case.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Behind", "ahead"]

T = TypeVar("T")
WAIT_SECONDS = 0.1  # after which a waiting thread looks whether it is still wanted


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def ahead(items: Iterable[T], *, depth: int = 2) -> Generator[T]:
    """Yield the items of an iterable, which runs in a thread of its own.

    Closing the generator ends the thread, after the item that it is making.

    Args:
        items: what is gone through; a generator runs in the other thread, and is closed there.
        depth: how many items are held that the caller has not taken yet.

    Raises:
        whatever the iterable raises, after the items before it.
    """
    made: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                made.put(item, timeout=WAIT_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put(item):
                    break
            put(_END)
        except BaseException as error:
            put(_Failure(error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=run, name="jaxspec ahead", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()


class Behind(Generic[T]):
    """Calls a function with items, in a thread and in the order in which they are put.

    Used in a `with` block. At its end all items are done, also where an exception ends the block.
    An error of the function is raised by the next `put` or at the end, and drops what follows.
    """

    def __init__(self, function: Callable[[T], object], *, depth: int = 2) -> None:
        """Start the thread.

        Args:
            function: called with every item.
            depth: how many items wait at most before `put` waits.
        """
        self._function, self._waiting = function, queue.Queue[Any](depth)
        self._error: BaseException | None = None
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jaxspec behind", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not _END:
            if self._dropped.is_set():
                continue
            try:
                self._function(item)
            except BaseException as error:
                self._error = error
                self._dropped.set()

    def put(self, item: T) -> None:
        """Hand over an item; wait while too many are waiting.

        Raises:
            whatever the function raised for an earlier item.
        """
        self._raise()
        self._waiting.put(item)

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Behind[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waiting.put(_END)
        self._thread.join()
        if error is None:
            self._raise()
