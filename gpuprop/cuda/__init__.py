"""CUDA: CuPy as a backend, and kernels for ops, your own included. CuPy is not imported before an array on a GPU is seen."""

from ._elementwise import elementwise
from ._kernel import kernel

__all__ = ["elementwise", "kernel"]
