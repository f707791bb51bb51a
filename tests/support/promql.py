"""What an expression asks for, held against what there is."""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import promql_parser


def unknown(expression: str, known: Mapping[str, AbstractSet[str]]) -> list[str]:
    """The metrics and labels of `expression` that are not among `known` (labels by metric). Raises ValueError where it is no PromQL."""
    found = []
    for metric, labels in asked(promql_parser.parse(expression), frozenset()):
        if metric not in known:
            found.append(metric)
        else:
            found += [f"{metric}{{{label}}}" for label in sorted(labels - known[metric])]
    return found


def asked(node: Any, grouped: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Each metric under `node`, with the labels that are matched on it or that it is grouped by."""
    kind = type(node).__name__
    if kind == "MatrixSelector":
        node, kind = node.vector_selector, "VectorSelector"
    if kind == "VectorSelector":
        yield node.name, grouped | {matcher.name for matcher in node.matchers.matchers}
    elif kind == "AggregateExpr":
        yield from asked(node.expr, grouped | frozenset(node.modifier.labels if node.modifier else ()))
    elif kind == "BinaryExpr":
        yield from asked(node.lhs, grouped)
        yield from asked(node.rhs, grouped)
    elif kind == "Call":
        for argument in node.args:
            yield from asked(argument, grouped)
    elif kind in ("ParenExpr", "UnaryExpr", "SubqueryExpr"):
        yield from asked(node.expr, grouped)
