"""Nested tuples, lists and dicts as flat lists and back, so that transforms take and return whole containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from .errors import ArgumentError


def flatten(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The leaves in order (dicts by sorted key), and a function that builds the same container from other leaves."""
    leaves: list[Any] = []
    try:
        build = _walk(tree, leaves)
    except RecursionError:
        raise ArgumentError(
            "expected containers nested some hundred levels deep at most, got more, or one in itself"
        ) from None
    if build is next:  # a leaf itself: every result of most captured functions
        return leaves, itemgetter(0)
    return leaves, lambda values: build(iter(values))


def _walk(tree: Any, leaves: list[Any]) -> Callable[[Iterator[Any]], Any]:
    if isinstance(tree, dict):
        keys = sorted(tree, key=repr)
        parts = [_walk(tree[key], leaves) for key in keys]

        def build_dict(values: Iterator[Any]) -> dict:
            made = {key: part(values) for key, part in zip(keys, parts)}
            return {key: made[key] for key in tree}  # in the order of the original

        return build_dict
    if isinstance(tree, (list, tuple)):
        parts = [_walk(item, leaves) for item in tree]
        if hasattr(tree, "_fields"):
            return lambda values: type(tree)(*[part(values) for part in parts])
        return lambda values: type(tree)([part(values) for part in parts])
    if tree is None:
        return lambda values: None
    leaves.append(tree)
    return next


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The container with each leaf replaced."""
    leaves, build = flatten(tree)
    return build([function(leaf) for leaf in leaves])
