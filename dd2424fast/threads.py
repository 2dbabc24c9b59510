"""Trainings side by side: one a thread, each with its share of the cores."""

import contextlib
import contextvars
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from .config import get_num_threads
from .configuration import positive_integer
from .kernels._team import limit_threads

# An object whose is_set() tells trainings in this context to end: Ctrl-C reaches the main thread alone.
END = contextvars.ContextVar("end", default=None)


def side_by_side(function, items, threads=None, progress=False):
    """Call function(item) for every item, on several threads, each of which has its share of the cores.

    For trainings of small networks: two side by side, on a thread each, end before two one after the other, on two
    threads each, and give the same bits. Kernels hold no lock, but Python's own work, such as drawing a batch, is not
    done side by side: the smaller the updates, the less is gained.

    Parameters
    ----------
    function : callable
        Called from several threads at once: what it trains must be its own.
    items : iterable
    threads : int, optional
        Default: dd.get_num_threads(), and within a call of another `side_by_side` those that it has.
    progress : bool
        A bar, to standard error.

    Returns
    -------
    list
        What the function returned, in the items' order.

    Raises
    ------
    Exception
        The first that the function raised. This, as Ctrl-C, ends trainings that are under way within moments (the `fit`
        of a Trainer returns, its `stop_reason` is "interrupted"), and the items that wait are left out.
    """
    if not callable(function):
        raise TypeError(f"function: expected a function of an item, got {type(function).__name__}")
    if not isinstance(items, Iterable):
        raise TypeError(f"items: expected an iterable, got {type(items).__name__}")
    items = list(items)
    threads = _threads_here() if threads is None else positive_integer("threads", threads)
    workers = max(1, min(threads, len(items)))
    end, above = threading.Event(), END.get()
    context = contextvars.copy_context()  # which backend is chosen
    context.run(END.set, end if above is None else _Either(end, above))
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(_bar(len(items))) if progress else None
        pool = ThreadPoolExecutor(workers, "dd2424fast", limit_threads, (max(1, threads // workers),))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        stack.callback(end.set)
        futures = [pool.submit(context.copy().run, function, item) for item in items]
        if bar is not None:
            for future in futures:
                future.add_done_callback(lambda _: bar.update(1))
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        return [future.result() for future in futures if future in done]  # all are, or one of them raises


def _threads_here():
    """Those that a kernel called here may use."""
    limit = limit_threads(0)
    limit_threads(limit)
    return min(limit, get_num_threads()) if limit else get_num_threads()


class _Either:
    """The end of these trainings, or of those within which they train."""

    def __init__(self, *events):
        self.events = events

    def is_set(self):
        return any(event.is_set() for event in self.events)


def _bar(total):
    from tqdm import tqdm

    return tqdm(total=total, unit=" fits", dynamic_ncols=True)
