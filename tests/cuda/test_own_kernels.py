"""Kernels of one's own: free-form ones, and none at all."""

import os
import subprocess
import sys

import numpy as np
import pytest

import gpuprop as gp
from gpuprop._op import REGISTRY, op
from gpuprop.device import device_scope, require
from gpuprop.testing import Draw, Sample

pytestmark = pytest.mark.cuda

# One block per row: the sum of the exponents of x scaled, by a fixed tree. And its gradient, one thread per element.
SOURCE = """
#include "common.cuh"

extern "C" __global__ void log_sum(const T* x, T* y, long long columns, A scale) {
  __shared__ A room[32];
  A sum = A(0);
  for (long long i = threadIdx.x; i < columns; i += blockDim.x) sum += exp(scale * widen<A>(x[blockIdx.x * columns + i]));
  sum = block_reduce(sum, Add(), A(0), room);
  if (threadIdx.x == 0) y[blockIdx.x] = narrow<T>(log(sum));
}

extern "C" __global__ void log_sum_gradient(const T* dy, const T* x, const T* y, T* dx, long long count, long long columns, A scale) {
  const long long i = (long long)(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const long long row = i / columns;
  dx[i] = narrow<T>(widen<A>(dy[row]) * scale * exp(scale * widen<A>(x[i]) - widen<A>(y[row])));
}
"""


def rows(draw: Draw):
    yield Sample(draw.normal(2, 5))
    yield Sample(draw.normal(2, 5), scale=0.5)


@pytest.fixture
def log_sum():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])

    @op(samples=rows)
    def own_log_sum(xp, x, *, scale=1.0):
        """Logarithm of sums: y_i = log(sum_j exp(scale * x_ij))."""
        return xp.log(xp.sum(xp.exp(scale * x), axis=1))

    @own_log_sum.grad("x")
    def _(xp, dy, x, y, *, scale):
        return scale * xp.reshape(dy, (-1, 1)) * xp.exp(scale * x - xp.reshape(y, (-1, 1)))

    own_log_sum.cuda = gp.cuda.kernel(
        SOURCE, "log_sum", blocks=len, threads=128, sizes=lambda x: x.shape[1:], shape=lambda x: x.shape[:1]
    ).grad(
        "x",
        "log_sum_gradient",
        keeps=["x", "y"],
        blocks=lambda dy, x, y: -(-x.size // 256),
        sizes=lambda dy, x, y: (x.size, x.shape[1]),
        shape=lambda dy, x, y: x.shape,
    )
    yield own_log_sum
    del REGISTRY["own_log_sum"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 1), (31, 33), (2, 1025), (0, 3)])
def test_a_free_form_kernel_computes_its_op(log_sum, shape, dtype):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape[:1]).astype(dtype)

    def run(f, device, x, dy):
        with device_scope(require(device)):
            inputs = gp.tensor(x, requires_grad=True)
            y = f(inputs, scale=0.5)
            y.backward(gp.tensor(dy))
            return y.numpy(), inputs.grad.numpy()

    tolerance = {"float16": 4e-3, "float32": 4e-6, "float64": 1e-13}[dtype]
    expected = run(log_sum, "cpu", x.astype(np.float64), dy.astype(np.float64))
    for a, e in zip(run(log_sum, "cuda", x, dy), expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


def test_a_free_form_kernel_is_what_runs(log_sum):
    with device_scope(require("cuda")):
        x = gp.randn(5, 7)
        assert log_sum.cuda.implementation.forward(x.data, scale=1.0) is not NotImplemented
        apart = gp.randn(7, 5).T  # kernels see no strides: it is packed first
        np.testing.assert_allclose(log_sum(apart).numpy(), log_sum(apart.numpy()), rtol=1e-5)
        assert log_sum(gp.ones(2, 3, dtype=gp.int64)).dtype == np.float64, "what no kernel takes, the rule computes"


def test_gradients_of_what_the_op_does_not_have_are_refused(log_sum):
    def bind(target, keeps):
        log_sum.cuda = gp.cuda.kernel(SOURCE, "log_sum", blocks=len).grad(target, "g", keeps=keeps, blocks=len)

    with pytest.raises(gp.errors.DeclarationError, match="own_log_sum.cuda: expected names among x and y.*'weight'"):
        bind("weight", [])
    with pytest.raises(gp.errors.DeclarationError, match="'mean'"):
        bind("x", ["mean"])


STEP = """
import gpuprop as gp, gpuprop.nn.functional as F
from gpuprop.cuda.source import Kernel
launched = []
launch = Kernel.__call__
Kernel.__call__ = lambda self, *arguments, **more: (launched.append(self.name), launch(self, *arguments, **more))
gp.manual_seed(0)
model = gp.nn.Sequential(gp.nn.Linear(5, 7), gp.nn.GELU(), gp.nn.LayerNorm(7), gp.nn.Dropout(0.5), gp.nn.Linear(7, 3))
model.to("cuda")
optimizer = gp.optim.Adam(model.parameters(), lr=0.1)
x, labels = gp.randn(11, 5, device="cuda"), gp.arange(11, device="cuda") % 3
for _ in range(3):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    gp.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
print(loss.item(), len(launched))
"""


def test_kernels_can_be_turned_off():
    """The same numbers, and not one of our kernels."""
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])

    def run(kernels):
        environment = {**os.environ, "GPUPROP_KERNELS": kernels, "GPUPROP_DEVICE": "cuda"}
        done = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True)
        return done.stdout.split() if done.returncode == 0 else done.stderr

    (loss, launched), (by_rules, none) = run("on"), run("off")
    assert int(launched) > 15 and int(none) == 0
    np.testing.assert_allclose(float(by_rules), float(loss), rtol=1e-5)
    assert "GPUPROP_KERNELS: expected 'on' or 'off', got 'of'" in run("of")
