"""The ops, one file per family. Importing this package fills the registry."""

from . import arithmetic, comparisons, elementary, linalg, reductions  # noqa: F401
