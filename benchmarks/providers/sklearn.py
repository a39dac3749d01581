"""scikit-learn's MLPClassifier, a batch at a time: `partial_fit`, with the weights put in by hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ..problem import BETA1, BETA2, EPSILON, MOMENTUM, Problem
from . import Contestant, Unsupported, in_turns

ACTIVATIONS = {"relu": "relu", "tanh": "tanh", "sigmoid": "logistic"}


def make(problem: Problem, mode: str) -> Contestant:
    from sklearn.neural_network import MLPClassifier

    if problem.activation not in ACTIVATIONS:
        raise Unsupported(f"scikit-learn's MLP has no {problem.activation}")
    if problem.optimizer == "adamw":
        raise Unsupported("scikit-learn's MLP has no AdamW")
    if problem.sizes[-1] < 3:
        raise Unsupported("scikit-learn's MLP has one output for two classes")
    model = MLPClassifier(
        problem.sizes[1:-1],
        activation=ACTIVATIONS[problem.activation],
        solver="adam" if problem.optimizer == "adam" else "sgd",
        alpha=0,
        batch_size=problem.batch,
        learning_rate_init=problem.rate,
        shuffle=False,
        momentum=MOMENTUM if problem.optimizer == "momentum" else 0,
        nesterovs_momentum=False,
        beta_1=BETA1,
        beta_2=BETA2,
        epsilon=EPSILON,
    )
    batches, classes = problem.batches(), np.arange(problem.sizes[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.partial_fit(*batches[0], classes=classes)  # makes the arrays
    for own, w in zip(model.coefs_, problem.weights(), strict=True):
        own[...] = w.T
    for own in model.intercepts_:
        own[...] = 0
    del model._optimizer  # made anew by the next call: that one's moments begin at 0

    def step(x: Any, labels: Any) -> Any:
        model.partial_fit(x, labels)
        return model.loss_

    return Contestant(in_turns(batches, step))
