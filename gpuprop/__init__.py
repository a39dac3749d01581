"""gpuprop: GPU-accelerated backpropagation on plain arrays."""
from ._tensor import Tensor, tensor, asarray, zeros, ones
from .tape import no_grad, enable_grad, detect_anomaly
from ._op import op
from . import ops, numpy, testing
