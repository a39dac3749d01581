"""The four equations of backpropagation, worked by hand for a sigmoid network with squared error, against the tape.

    C = 1/(2n) sum_x ||y(x) - a^L(x)||^2,   z^l = w^l a^(l-1) + b^l,   a^l = s(z^l),   s' = s (1 - s)

    (1) delta^L = (a^L - y) s'(z^L)
    (2) delta^l = (w^(l+1))^T delta^(l+1) s'(z^l)
    (3) dC/db^l_j = delta^l_j
    (4) dC/dw^l_jk = a^(l-1)_k delta^l_j

each for one sample, averaged over the n samples.
"""

import math

import numpy as np

import gpuprop as gp

SIZES, SAMPLES = [3, 4, 2], 5


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def by_hand(weights, biases, x, y):
    """Gradients by the four equations in scalar arithmetic, one sample, one neuron and one weight at a time."""
    dw = [np.zeros_like(w) for w in weights]
    db = [np.zeros_like(b) for b in biases]
    cost = 0.0
    layers = range(1, len(SIZES))
    for sample in range(SAMPLES):
        a = [list(x[sample])]
        for layer in layers:
            w, b = weights[layer - 1], biases[layer - 1]
            z = [sum(w[j][k] * a[-1][k] for k in range(SIZES[layer - 1])) + b[j] for j in range(SIZES[layer])]
            a.append([sigmoid(value) for value in z])
        cost += sum((y[sample][j] - a[-1][j]) ** 2 for j in range(SIZES[-1])) / (2 * SAMPLES)
        slope = [[value * (1 - value) for value in activations] for activations in a]
        delta = {len(SIZES) - 1: [(a[-1][j] - y[sample][j]) * slope[-1][j] for j in range(SIZES[-1])]}  # (1)
        for layer in reversed(layers[:-1]):
            w = weights[layer]  # leads from this layer to the next
            delta[layer] = [
                sum(w[j][k] * delta[layer + 1][j] for j in range(SIZES[layer + 1])) * slope[layer][k]  # (2)
                for k in range(SIZES[layer])
            ]
        for layer in layers:
            for j in range(SIZES[layer]):
                db[layer - 1][j] += delta[layer][j] / SAMPLES  # (3)
                for k in range(SIZES[layer - 1]):
                    dw[layer - 1][j][k] += a[layer - 1][k] * delta[layer][j] / SAMPLES  # (4)
    return cost, dw, db


def test_the_four_equations(device):
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal((n, m)) for m, n in zip(SIZES, SIZES[1:])]
    biases = [rng.standard_normal(n) for n in SIZES[1:]]
    x, y = rng.standard_normal((SAMPLES, SIZES[0])), rng.uniform(0, 1, (SAMPLES, SIZES[-1]))
    cost, dw, db = by_hand(weights, biases, x, y)

    ws = [gp.tensor(w, device=device, requires_grad=True) for w in weights]
    bs = [gp.tensor(b, device=device, requires_grad=True) for b in biases]
    a = gp.tensor(x, device=device)
    for w, b in zip(ws, bs):
        a = gp.numpy.sigmoid(a @ w.T + b)
    loss = ((gp.tensor(y, device=device) - a) ** 2).sum() / (2 * SAMPLES)
    loss.backward()

    np.testing.assert_allclose(loss.item(), cost, rtol=1e-13)
    for tensor, expected in zip([*ws, *bs], [*dw, *db]):
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-12)
