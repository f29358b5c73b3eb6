# SPDX-License-Identifier: Apache-2.0
"""Hypothesis: each example begins with the machines as they had booted.

Fixtures are made once for all examples of a test. So what Hypothesis calls for
each of them is wrapped, and puts the machines back first.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from functools import wraps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    import pytest

    from .machines import Booted


@contextmanager
def restored(item: pytest.Item, handle: Any) -> Iterator[None]:
    """While the test runs: `handle` is its function's `hypothesis`."""
    from ..plugin import USED

    used = list(item.stash[USED].values())
    function = getattr(item.obj, "__func__", item.obj)  # type: ignore[attr-defined]
    inner = handle.inner_test
    settings = getattr(function, SETTINGS, None)
    handle.inner_test = wrapped(inner, used)
    if settings is not None and only_ours(item):
        setattr(function, SETTINGS, without_check(settings))
    try:
        yield
    finally:
        handle.inner_test = inner
        if settings is not None:
            setattr(function, SETTINGS, settings)


# Where Hypothesis keeps a test's settings. It has no other way to the check of
# one test; without it users suppress that themselves.
SETTINGS = "_hypothesis_internal_use_settings"


def wrapped(
    inner: Callable[..., Any], used: list[Booted]
) -> Callable[..., Any]:
    """`inner`, with fresh machines."""
    passed = [booted.machine for booted in used]

    def again(arguments: dict[str, Any]) -> dict[str, Any]:
        """They are others than are passed, once an example has closed one."""
        for booted, machine in zip(used, passed, strict=True):
            now = booted.fresh()
            for name, value in arguments.items():
                if value is machine:
                    arguments[name] = now
        return arguments

    if inspect.iscoroutinefunction(inner):

        @wraps(inner)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            return await inner(*args, **again(kwargs))

        return run_async

    @wraps(inner)
    def run(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return inner(*args, **again(kwargs))

    return run


def only_ours(item: pytest.Item) -> bool:
    """Whether no fixture that the test takes is made anew for each test, but
    for machines: then the health check would only complain of those."""
    from ..plugin import USED

    active = getattr(
        getattr(item, "_request", None), "_get_active_fixturedef", None
    )
    if active is None:
        return False
    params = getattr(getattr(item, "callspec", None), "params", {})
    return all(
        name in item.stash[USED] or active(name).scope != "function"
        for name in inspect.signature(item.function).parameters  # type: ignore[attr-defined]
        if name in item.funcargs and name not in params  # type: ignore[attr-defined]
    )


def without_check(settings: Any) -> Any:
    """Those settings, with function-scoped fixtures allowed."""
    from hypothesis import HealthCheck
    from hypothesis import settings as make

    return make(
        settings,
        suppress_health_check={
            *settings.suppress_health_check,
            HealthCheck.function_scoped_fixture,
        },
    )
