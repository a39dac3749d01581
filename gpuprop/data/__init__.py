"""Data: tensors in batches on their device, tables from files, and the bundled digits."""

from .digits import load_digits
from .loader import DataLoader, TensorDataset, random_split
from .preprocessing import Preprocessing
from .table import Table, read_table

__all__ = ["DataLoader", "Preprocessing", "Table", "TensorDataset", "load_digits", "random_split", "read_table"]
