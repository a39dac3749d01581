"""Modules, parameters, losses and initialisers, with PyTorch's names."""

from . import utils
from .module import Module
from .parameter import Parameter

__all__ = ["Module", "Parameter", "utils"]
