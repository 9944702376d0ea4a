"""Call a function that may never come back.

The call runs in a thread of its own. When the time is up an exception is raised *inside* that thread,
which ends any loop written in Python, on every operating system (an alarm signal would work only in the
main thread, and not on Windows). A loop inside a C library cannot be ended this way; it is left behind
in a daemon thread that cannot keep the process alive.
"""

from __future__ import annotations

import contextvars
import ctypes
import threading
from collections.abc import Callable
from typing import Any


class OutOfTime(BaseException):
    """Raised in the thread that is too slow. Not an `Exception`: `except Exception` must not catch it."""


def call_with_limit(function: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> Any:
    """`function(*args)`, or `OutOfTime` after `seconds`. What the function raises is raised here."""
    outcome: list[Any] = []
    failure: list[BaseException] = []
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome.append(context.run(function, *args))
        except BaseException as error:  # SystemExit too: exit() in an answer must not go unnoticed
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True, name="answer")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        # Raised again and again: a bare `except:` in the loop may swallow it once.
        for _ in range(10):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(OutOfTime)
            )
            thread.join(0.1)
            if not thread.is_alive():
                break
        raise OutOfTime
    if failure:
        raise failure[0]
    return outcome[0]
