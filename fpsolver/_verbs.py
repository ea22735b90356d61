"""Verbs: one question, asked of a generator or of anything else that knows an answer of its own."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def verb(function: F) -> F:
    """A question whose answer for a generator is ``function``; :func:`answers` adds those for other subjects.

    Questions without a schedule are about what does not change, and refuse a process that depends on the time.
    """
    still = "schedule" not in signature(function).parameters
    others: list[tuple[type, Callable[..., Any]]] = []

    @wraps(function)
    def ask(gen: Any, *arguments: Any, **options: Any) -> Any:
        if still and getattr(getattr(gen, "process", None), "timed", False):
            raise ValueError(
                f"{function.__name__}: the process depends on the time t, and this is a question about one that does "
                "not. Ask fp.evolve or fp.backward (with payoff 1: the survival), or stop the time: gen.replace(t=0.0)."
            )
        answer = next((f for kind, f in others if isinstance(gen, kind)), function)
        return answer(gen, *arguments, **options)

    ask.others = others  # type: ignore[attr-defined]
    return cast(F, ask)


def answers(question: Callable[..., Any], kind: type) -> Callable[[F], F]:
    """Decorator: the answer to a verb's question for subjects of some kind."""

    def add(function: F) -> F:
        question.others.append((kind, function))  # type: ignore[attr-defined]
        return function

    return add
