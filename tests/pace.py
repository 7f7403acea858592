"""How long a piece of work takes, whatever else goes on."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """What thousands of earlier tests left is not collected inside."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block takes this thread at most so many seconds of processor time, whatever threads of other tests do."""
    with undisturbed():
        began = time.thread_time()
        yield
        taken = time.thread_time() - began
    assert taken < seconds, f"it took {taken:.2f} s of at most {seconds:g}"
