"""The ops, one file per family. Importing this package fills the registry."""

from . import (
    activations,
    arithmetic,
    comparisons,
    elementary,
    indexing,
    linalg,
    losses,
    normalisation,
    random,
    reductions,
    shape,
)
