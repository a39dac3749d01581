"""What is timed: a training step of one network, from the same weights on the same batches for everybody."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# While providers are compared with each other, rates at which 20 steps change the loss; while they are timed, one at which no network
# learns its batches by heart: gradients and moments that vanish are subnormal numbers, which processors compute with ten times slower.
RATES = {"sgd": 0.05, "momentum": 0.01, "adam": 1e-3, "adamw": 1e-3}
RATE_WHEN_TIMED = 1e-6
MOMENTUM, BETA1, BETA2, EPSILON = 0.9, 0.9, 0.999, 1e-8
WEIGHT_DECAY = 1.0  # so large that 20 steps show whether it is there
ACTIVATIONS = ("relu", "gelu", "tanh", "sigmoid", "silu")
PRECISIONS = ("highest", "high")
BATCHES = 4  # different ones, which take turns


@dataclass(frozen=True)
class Problem:
    """One Adam (or other) step of an MLP with softmax cross-entropy, on a device."""

    sizes: tuple[int, ...]
    batch: int
    activation: str = "relu"
    optimizer: str = "adam"
    precision: str = "highest"  # of float32 products: "high" lets a GPU round their inputs to TF32
    device: str = "cpu"
    rate: float = RATE_WHEN_TIMED
    seed: int = 0

    def __str__(self) -> str:
        extras = [self.activation] * (self.activation != "relu") + [self.optimizer] * (self.optimizer != "adam")
        extras += ["TF32"] * (self.precision != "highest") + [self.device] * (self.device != "cpu")
        return ", ".join(["-".join(map(str, self.sizes)), f"batch {self.batch}", *extras])

    @property
    def parameters(self) -> int:
        return sum((m + 1) * n for m, n in zip(self.sizes, self.sizes[1:], strict=False))

    def rehearsal(self) -> Problem:
        """The same, with steps large enough to see that they are right."""
        return replace(self, rate=RATES[self.optimizer])

    def weights(self) -> list[np.ndarray]:
        """Initial weights (out, in); biases begin at 0."""
        rng = np.random.default_rng(self.seed)
        pairs = zip(self.sizes, self.sizes[1:], strict=False)
        return [((2 * rng.random((n, m), np.float32) - 1) / np.float32(np.sqrt(m))) for m, n in pairs]

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Inputs (batch, in) and labels (batch,)."""
        rng = np.random.default_rng(self.seed + 1)
        shape = self.batch, self.sizes[0]
        return [
            (rng.standard_normal(shape, np.float32), rng.integers(0, self.sizes[-1], self.batch))
            for _ in range(BATCHES)
        ]

    def optimizer_options(self) -> dict[str, Any]:
        """The options of the optimizer beside its rate, by the names that PyTorch gave them."""
        return {
            "sgd": {},
            "momentum": {"momentum": MOMENTUM},
            "adam": {"betas": (BETA1, BETA2), "eps": EPSILON},
            "adamw": {"betas": (BETA1, BETA2), "eps": EPSILON, "weight_decay": WEIGHT_DECAY},
        }[self.optimizer]


# Of the sizes that people train, from one whose products take no time to one that is nothing but products.
NETWORKS = {
    "small": Problem((64, 64, 64, 10), 32),
    "middle": Problem((784, 256, 128, 10), 128),
    "wide": Problem((784, 1024, 1024, 10), 512),
    "gelu": Problem((256, 512, 512, 512, 512, 16), 256, "gelu"),
    "huge": Problem((784, 2048, 2048, 2048, 10), 1024),
    "giant": Problem((1024, 4096, 4096, 4096, 4096, 1024), 8192),
}
