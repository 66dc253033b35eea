"""Steps in threads: they overlap, keep order and bounds, and end together whatever fails."""

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmv3.pipeline import on_all_cores, read_ahead, work_ahead, work_behind, work_together

SOON = 20  # seconds after which a test that would hang fails instead


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    ends = time.monotonic() + 10  # a pool that was interrupted while it closed lets its threads end by themselves
    while threading.active_count() > before and time.monotonic() < ends:
        time.sleep(0.01)
    assert threading.active_count() == before


def wait(event: threading.Event) -> None:
    assert event.wait(SOON), "the other step did not run meanwhile"


class Broken(Exception):
    """What a step of these tests raises."""


def counting(count: int, taken: list[int]) -> Iterator[int]:
    for index in range(count):
        taken.append(index)
        yield index


# ---- read_ahead ----


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10])
@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_reading_ahead_gives_every_item_once_and_in_order(count: int, ahead: int) -> None:
    with read_ahead(range(count), ahead=ahead) as items:
        assert list(items) == list(range(count))


def test_the_next_item_is_read_while_one_is_used() -> None:
    read = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        read.set()
        yield 1

    with read_ahead(items(), ahead=1) as ahead:
        assert next(ahead) == 0
        wait(read)  # nobody has asked for item 1
        assert list(ahead) == [1]


@pytest.mark.parametrize("ahead", [1, 3])
def test_reading_stops_when_enough_is_waiting(ahead: int) -> None:
    taken: list[int] = []
    with read_ahead(counting(50, taken), ahead=ahead) as items:
        for index in items:
            assert len(taken) <= index + 1 + ahead
    assert len(taken) == 50
    taken.clear()
    with read_ahead(counting(50, taken), ahead=ahead) as items:
        next(items)
    assert len(taken) <= 1 + ahead


def test_an_error_of_reading_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise Broken("item 3")

    got = []
    with pytest.raises(Broken, match="item 3"), read_ahead(items(), ahead=2) as ahead:
        for item in ahead:
            got.append(item)  # noqa: PERF402 (what came before the error counts)
    assert got == [0, 1, 2]


def test_leaving_early_waits_for_the_read_in_progress() -> None:
    reading, left, closed = threading.Event(), threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        reading.set()
        wait(left)
        assert not closed.is_set()
        yield 1

    with pytest.raises(Broken):
        try:
            with read_ahead(items(), ahead=2) as ahead:
                next(ahead)
                wait(reading)
                threading.Timer(0.05, left.set).start()
                raise Broken
        finally:
            closed.set()  # as a file the items come from would be
    assert left.is_set()


# ---- work_behind ----


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(1, 3), st.integers(0, 3))
def test_working_behind_gives_every_result_once_and_in_order(count: int, threads: int, waiting: int) -> None:
    with work_behind(lambda item: 10 * item, range(count), threads=threads, waiting=waiting) as results:
        assert list(results) == [10 * item for item in range(count)]


def test_an_item_is_worked_on_while_the_next_is_made() -> None:
    begun, made = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        wait(begun)  # in the caller's thread, with the work on item 0 under way
        made.set()
        yield 1

    def work(item: int) -> int:
        if item == 0:
            begun.set()
            wait(made)
        return item

    with work_behind(work, items()) as results:
        assert list(results) == [0, 1]


def test_items_are_made_in_the_caller_s_thread_and_worked_on_in_another() -> None:
    def items() -> Iterator[threading.Thread]:
        for _ in range(3):
            yield threading.current_thread()

    with work_behind(lambda made_by: (made_by, threading.current_thread()), items()) as results:
        for made_by, worked_on_by in results:
            assert made_by is threading.current_thread() is not worked_on_by


def test_two_threads_work_at_once_and_the_results_are_in_order() -> None:
    second = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            wait(second)
        if item == 1:
            second.set()
        return item

    with work_behind(work, range(5), threads=2, waiting=0) as results:
        assert list(results) == list(range(5))


@pytest.mark.parametrize(("threads", "waiting"), [(1, 0), (1, 2), (2, 1)])
def test_no_more_items_are_made_than_may_wait(threads: int, waiting: int) -> None:
    made: list[int] = []
    done: list[int] = []

    def items() -> Iterator[int]:
        for index in range(40):
            assert len(made) - len(done) <= threads + waiting
            made.append(index)
            yield index

    with work_behind(done.append, items(), threads=threads, waiting=waiting) as results:
        assert len(list(results)) == len(done) == 40


def broken_at(place: int, done: list[int]) -> Callable[[int], None]:
    def work(item: int) -> None:
        if item == place:
            raise Broken(f"item {item}")
        done.append(item)

    return work


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9), st.integers(1, 3), st.integers(0, 3))
def test_work_that_fails_ends_everything_after_it(place: int, threads: int, waiting: int) -> None:
    done: list[int] = []
    made: list[int] = []
    with (
        pytest.raises(Broken, match=f"item {place}"),
        work_behind(broken_at(place, done), counting(30, made), threads=threads, waiting=waiting) as results,
    ):
        list(results)
    assert sorted(done)[:place] == list(range(place))
    assert len(done) < place + threads and (threads > 1 or len(done) == place)
    assert len(made) <= place + threads + waiting + 1


def test_the_first_error_in_order_wins_though_a_later_one_came_first() -> None:
    second = threading.Event()

    def work(item: int) -> None:
        if item == 0:
            wait(second)
        second.set()
        raise Broken(f"item {item}")

    with pytest.raises(Broken, match="item 0"), work_behind(work, range(5), threads=2) as results:
        list(results)


def test_an_error_of_work_comes_before_one_of_a_later_item() -> None:
    making = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        making.set()
        raise Broken("making item 1")

    def work(item: int) -> None:
        wait(making)
        raise Broken(f"working on item {item}")

    with pytest.raises(Broken, match="working on item 0"), work_behind(work, items()) as results:
        list(results)


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_was_handed_over_is_done_before_an_error_of_making_is_raised(
    error: type[BaseException], threads: int
) -> None:
    done: list[int] = []
    stopped = threading.Event()

    def items() -> Iterator[int]:
        yield from range(3)
        stopped.set()
        raise error

    def work(item: int) -> None:
        wait(stopped)
        done.append(item)

    with pytest.raises(error), work_behind(work, items(), threads=threads, waiting=3) as results:
        list(results)
    assert sorted(done) == [0, 1, 2]


def test_an_error_of_the_caller_s_own_is_treated_alike() -> None:
    done: list[int] = []
    with pytest.raises(Broken, match="mine"), work_behind(done.append, range(30)) as results:
        for _ in results:
            raise Broken("mine")
    assert done == list(range(len(done))) and 1 <= len(done) <= 4


def test_ctrl_c_is_not_replaced_by_an_error_of_work() -> None:
    stopped = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        stopped.set()
        raise KeyboardInterrupt

    def work(item: int) -> None:
        wait(stopped)
        raise Broken

    with pytest.raises(KeyboardInterrupt), work_behind(work, items()) as results:
        list(results)


# ---- both, and real signals ----


@pytest.mark.parametrize("place", ["read", "predict", "write"])
def test_an_error_anywhere_ends_both(place: str) -> None:
    done: list[int] = []

    def step(name: str, item: int) -> int:
        if name == place and item == 5:
            raise Broken(name)
        return item

    with (
        pytest.raises(Broken, match=place),
        read_ahead(step("read", item) for item in range(50)) as read,
        work_behind(lambda item: done.append(step("write", item)), (step("predict", item) for item in read)) as results,
    ):
        list(results)
    assert done == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="sends POSIX signals to this thread")
def test_ctrl_c_is_noticed_while_waiting_for_a_thread() -> None:
    caller, release = threading.get_ident(), threading.Event()
    done: list[int] = []

    def work(item: int) -> None:
        if item == 0:
            signal.pthread_kill(caller, signal.SIGINT)  # the caller waits, or is about to
            wait(release)
        done.append(item)

    with ThreadPoolExecutor(1) as other:
        other.submit(lambda: (threading.Event().wait(0.3), release.set()))
        with pytest.raises(KeyboardInterrupt), work_behind(work, range(100), waiting=1) as results:
            list(results)
    assert done == list(range(len(done))) and 1 <= len(done) <= 2


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="sends POSIX signals to this thread")
def test_a_second_ctrl_c_drops_what_waits_but_not_what_runs() -> None:
    caller, stopped, pressed = threading.get_ident(), threading.Event(), threading.Event()
    done: list[int] = []

    def items() -> Iterator[int]:
        yield from range(3)
        stopped.set()
        raise KeyboardInterrupt

    def work(item: int) -> None:
        wait(stopped)
        if not pressed.is_set():
            pressed.wait(0.2)  # until the caller waits for this thread
            pressed.set()
            signal.pthread_kill(caller, signal.SIGINT)
            threading.Event().wait(0.2)
        done.append(item)

    with pytest.raises(KeyboardInterrupt), work_behind(work, items(), waiting=3) as results:
        list(results)
    assert done == [0]


# ---- work_together ----


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(1, 4))
def test_working_together_gives_every_result_once_and_in_order(count: int, threads: int) -> None:
    with work_together(lambda item: 10 * item, range(count), threads=threads) as results:
        assert list(results) == [10 * item for item in range(count)]


def test_items_are_worked_on_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=SOON)
    taken: list[int] = []

    def work(item: int) -> int:
        both.wait()
        return item

    with work_together(work, counting(10, taken), threads=2) as results:
        assert next(results) == 0
        assert len(taken) <= 4  # two at work, one that waits, and the one that was given
        assert list(results) == list(range(1, 10))


@pytest.mark.parametrize("where", ["work", "items"])
def test_an_error_comes_after_the_results_before_it(where: str) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        if where == "items":
            raise Broken
        yield 5

    def work(item: int) -> int:
        time.sleep(0.01 * (5 - item))  # later items are done sooner
        if item == 5:
            raise Broken
        return item

    given: list[int] = []
    with pytest.raises(Broken), work_together(work, items(), threads=3) as results:
        given.extend(results)
    assert given == list(range(5))


def test_an_error_of_the_caller_ends_the_work_together() -> None:
    taken: list[int] = []
    with pytest.raises(Broken), work_together(lambda item: item, counting(100, taken), threads=2) as results:
        next(results)
        raise Broken
    assert len(taken) <= 4


# ---- work_ahead ----


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(1, 4), st.integers(0, 3))
def test_working_ahead_gives_every_result_once_and_in_order(count: int, threads: int, waiting: int) -> None:
    with work_ahead(lambda item: 10 * item, range(count), threads=threads, waiting=waiting) as results:
        assert list(results) == [10 * item for item in range(count)]
    with on_all_cores(lambda item: 10 * item, range(count)) as results:
        assert list(results) == [10 * item for item in range(count)]


def test_the_next_items_are_worked_on_while_each_result_is_in_use() -> None:
    begun = [threading.Event() for _ in range(10)]
    with work_ahead(lambda item: begun[item].set() or item, range(10), threads=2) as results:
        for item in results:
            for following in begun[item + 1 : item + 3]:
                wait(following)


def test_an_error_of_the_work_ahead_comes_in_its_place_and_ends_it() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise Broken("item 3")
        return item

    given: list[int] = []
    with pytest.raises(Broken, match="item 3"), work_ahead(work, range(100), threads=2) as results:
        given.extend(results)
    assert given == [0, 1, 2]


def test_a_generator_that_was_forgotten_is_cleared_away_in_a_job_of_its_own() -> None:
    forgotten, cleared = threading.Event(), threading.Event()

    def work(item: int) -> int:
        if item == 1:
            wait(forgotten)
            gc.collect()  # as Python does at any time, in any thread
            cleared.set()
        return item

    def numbers() -> Iterator[int]:
        with work_ahead(work, range(9), threads=2) as results:
            yield from results

    ring: list[object] = [numbers()]
    ring.append(ring)  # as an error's traceback holds the frame that holds the error
    assert next(ring[0]) == 0  # type: ignore[call-overload]
    del ring
    forgotten.set()
    wait(cleared)
