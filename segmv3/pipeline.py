"""Steps of a job that overlap in threads, their results in order.

    with read_ahead(frames) as waiting, work_behind(write, map(predict, waiting)) as done:
        for result in done: ...

Here frames are read and results written in threads, and `predict` runs in the caller's own, where signals arrive.
Nothing can block for good. The caller hands items to a pool, and never more than may be on their way, so no thread
waits for room or for work that may not come.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from threading import Condition, get_ident
from typing import Any, TypeVar

from segmv3.waiting import giving_up

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 4
"""How many pictures are labelled at a time at most: each needs memory of its own."""

CORES = os.cpu_count() or 1

Progress = Callable[[int, int], None]
"""Is told how many items are done, and how many there are."""

_END: Any = object()


@contextmanager
def read_ahead(items: Iterable[Item], *, ahead: int = 2) -> Iterator[Iterator[Item]]:
    """The items in order, made by one thread while earlier ones are in use.

    What `items` raises is raised in its place, after the items before it. Once the block is left, nothing is made.

    Args:
        ahead: how many items may be waiting.
    """
    source = iter(items)

    def in_order() -> Iterator[Item]:
        waiting = deque(pool.submit(next, source, _END) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, source, _END))
            yield item

    with closing(_Threads(1)) as pool:
        yield in_order()


@contextmanager
def work_behind(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 1, waiting: int = 2
) -> Iterator[Iterator[Result]]:
    """`work(item)` of each item in order, done in threads while the caller's thread makes the next items.

    The first error in the order of the items is the one that is raised, as soon as the item being made is
    there. All items before it are worked on to the end, and none of those that had not begun. Likewise when the
    block is left by an error of `items`, by one of the caller's or by Ctrl-C: what was handed over is worked on
    first. A second Ctrl-C drops what has not begun. Once the block is left, nothing is worked on.

    Args:
        threads: with one, work begins and ends in order.
        waiting: how many items may wait for a thread.
    """
    running: deque[Future[Result]] = deque()
    failed: list[int] = []

    def attempt(number: int, item: Item) -> Result:
        if any(earlier < number for earlier in failed):
            raise CancelledError
        try:
            return work(item)
        except BaseException:
            failed.append(number)
            raise

    def in_order() -> Iterator[Result]:
        for number, item in enumerate(items):
            while running and (running[0].done() or len(running) >= threads + waiting):
                yield oldest()
            running.append(pool.submit(attempt, number, item))
        while running:
            yield oldest()

    def oldest() -> Result:
        result = running[0].result()  # one that failed stays, to be found below
        running.popleft()
        return result

    with closing(_Threads(threads)) as pool:
        try:
            yield in_order()
        except BaseException as error:
            reasons = [future.exception() for future in running]  # waits for each
            first = next((reason for reason in reasons if reason), error)
            if first is error or not isinstance(error, Exception):  # Ctrl-C outranks an error
                raise
            raise first from error


@contextmanager
def work_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, waiting: int = 0
) -> Iterator[Iterator[Result]]:
    """`work(item)` of each item in order, the next ones being worked on while this result is in use.

    What `work` raises is raised in its place. Once the block is left, nothing is worked on.

    Args:
        items: items at hand, such as indices: to ask for one takes no time.
        threads: how many items are worked on at a time.
        waiting: how many more results may wait for their turn.
    """

    def in_order() -> Iterator[Result]:
        running = deque[Future[Result]]()
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > threads + waiting:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    with closing(_Threads(threads)) as pool:
        yield in_order()


def on_all_cores(work: Callable[[Item], Result], items: Iterable[Item]) -> AbstractContextManager[Iterator[Result]]:
    """`work_ahead` where results are small: many may wait, so that no core is idle while one item takes long."""
    return work_ahead(work, items, threads=CORES, waiting=16 * CORES)


@contextmanager
def work_together(work: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Iterator[Result]]:
    """`work(item)` of each item in order, several at a time.

    What `work` or `items` raises is raised in its place. Once the block is left, nothing is worked on.

    Args:
        threads: how many items are worked on at a time, while one more waits. With one, the caller's own thread works.
    """
    if threads == 1:
        yield map(work, items)
        return

    def in_order() -> Iterator[Result]:
        source, running, more = iter(items), deque[Future[Result]](), True
        while more or running:
            if running and (running[0].done() or len(running) > threads or not more):
                yield running.popleft().result()
                continue
            try:
                running.append(pool.submit(work, next(source)))
            except StopIteration:
                more = False
            except Exception as error:
                running.append(Future())
                running[-1].set_exception(error)
                more = False

    with closing(_Threads(threads)) as pool:
        yield in_order()


class _Threads:
    """A pool of which no job is running or will run once it is closed, also when Ctrl-C comes while it closes.

    The executor alone does not see to that: an interrupted `Thread.join` or `Thread.start` makes it lose sight of
    a thread, which would go on with files that are closed meanwhile.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count)
        self._open, self._changed = True, Condition()
        self._busy: set[int] = set()

    def submit(self, job: Callable[..., Result], *arguments: Any) -> Future[Result]:
        return self._pool.submit(self._run, job, *arguments)

    def _run(self, job: Callable[..., Result], *arguments: Any) -> Result:
        with self._changed:
            if not self._open:
                raise CancelledError
            self._busy.add(get_ident())
        try:
            return job(*arguments)
        finally:
            with self._changed:
                self._busy.discard(get_ident())
                self._changed.notify_all()

    def close(self) -> None:
        mine = get_ident()  # Python may clear a forgotten generator away in any thread, so in one of its own jobs
        try:
            with self._changed:
                self._open = False
                with giving_up(*self._busy - {mine}):
                    self._changed.wait_for(lambda: not self._busy - {mine})
            self._pool.shutdown(wait=mine not in self._busy, cancel_futures=True)
        except BaseException:  # a further Ctrl-C
            self.close()
            raise
