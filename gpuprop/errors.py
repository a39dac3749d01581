"""The errors of gpuprop: each is a `gp.Error` and the built-in kind it is, so that both may be caught.

A message reads `<op>: expected <what>, got <shapes, dtypes, devices>; <what to do>`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Error(Exception):
    """Base of every error that gpuprop raises itself."""


class ShapeError(Error, ValueError):
    """Shapes that an operation cannot combine, or a value that it cannot use."""


class DtypeError(Error, TypeError):
    """A dtype that an operation does not take, such as a gradient for integers."""


class ArgumentError(Error, TypeError):
    """An argument that is missing, unknown, or of the wrong kind."""


class OptionError(Error, ValueError):
    """An option whose value is not one of those allowed."""


class BoundsError(Error, IndexError):
    """An index, an axis or a label that is out of range."""


class DeviceError(Error, RuntimeError):
    """Arrays on different devices in one operation, or a device that cannot be had."""


class DeclarationError(Error, TypeError):
    """An op whose declaration breaks the contract; raised when it is declared, not when it is called."""


class GraphError(Error, RuntimeError):
    """A backward walk that has nothing to walk, or whose kept arrays were freed or changed."""


class MutationError(GraphError):
    """A change in place that the tape forbids, or one that made a kept array stale."""


class UndefinedGradientError(Error, RuntimeError):
    """A gradient was asked for with respect to an input that has no gradient rule."""


class CaptureError(Error, RuntimeError):
    """A function that cannot be captured, or a captured one that was used otherwise than it can be."""


class AnomalyError(Error, RuntimeError):
    """`gp.detect_anomaly()` found a gradient that is not finite."""


class CheckpointError(Error, RuntimeError):
    """A file of saved state that cannot be read, or that does not fit what it is loaded into."""


class DataError(Error, ValueError):
    """A file, a table or a run folder that cannot be used as it is."""


class DivergenceError(Error, ArithmeticError):
    """A training whose loss is no longer finite."""


def explained(error: Exception, where: str, got: str) -> Exception:
    """What NumPy or CuPy refused, as an error of ours that says where, and for what; any other error as it is."""
    if isinstance(error, IndexError):
        kind: type[Error] = BoundsError
    elif isinstance(error, (TypeError, AttributeError)):
        kind = DtypeError
    elif isinstance(error, (ValueError, OverflowError, ZeroDivisionError)):
        kind = ShapeError
    else:
        return error
    if isinstance(error, Error):
        return error
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return kind(f"{where}: {said}; got {got}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest one that exists, or those that exist."""
    known = list(known)
    by_case = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_case, n=1, cutoff=0.5)
    if near:
        return f"did you mean {by_case[near[0]]!r}?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"there are: {shown}"
