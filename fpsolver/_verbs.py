"""Verbs: one question, asked of a generator or of anything else that knows an answer of its own."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def verb(function: F) -> F:
    """A question whose answer for a generator is ``function``; :func:`answers` adds those for other subjects."""
    others: list[tuple[type, Callable[..., Any]]] = []

    @wraps(function)
    def ask(gen: Any, *arguments: Any, **options: Any) -> Any:
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
