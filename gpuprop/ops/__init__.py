"""The ops, one file per family. Importing this package fills the registry."""

from . import (
    activations,
    arithmetic,
    biased,
    blockwise,
    comparisons,
    elementary,
    fused,
    indexing,
    linalg,
    losses,
    normalisation,
    random,
    reductions,
    shape,
)
