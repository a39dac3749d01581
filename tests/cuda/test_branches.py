"""Branches of a captured step: weight gradients run beside what leads to the next one, and nobody touches their memory meanwhile.

Simulated streams do their work one after another, and the simulator draws a graph as a chain: so what runs on which stream, and what waits
for what, is noted while a step is captured.
"""

import contextlib
import re

import numpy as np
import pytest

import gpuprop as gp
import gpuprop.nn.functional as F
from gpuprop import nn
from gpuprop.cuda.source import Kernel

pytestmark = pytest.mark.cuda
cupy = pytest.importorskip("cupy")
pytest.importorskip("nvmath")


class Node:
    """Something that a graph does, with the nodes that come before it in its stream or are waited for."""

    def __init__(self, name, reads, writes, before):
        self.name, self.reads, self.writes, self.before = name, reads, writes, before
        self.length = 1 + max((node.length for node in before), default=0)  # of the longest chain that ends here

    def precedes(self, other):
        waiting, seen = list(other.before), set()
        while waiting:
            node = waiting.pop()
            if node is self:
                return True
            if node not in seen:
                seen.add(node)
                waiting += node.before
        return False


class Notes:
    """The nodes of a capture."""

    def __init__(self, monkeypatch):
        from gpuprop.cuda import fused as users
        from gpuprop.cuda import gemm, graph

        self.nodes, self.tips = [], {}  # the last nodes of each stream
        launch, multiply, fused = Kernel.__call__, gemm.Plan.multiply, gemm.fused_product
        run, join = graph.Branch.run, graph.Branch.join

        def launched(kernel, grid, block, arguments, **more):
            if cupy.cuda.get_current_stream().is_capturing():
                parameters = re.search(rf"{kernel.name}\((.*)\) {{", kernel.definition).group(1).split(", ")
                arrays = [(p, a) for p, a in zip(parameters, arguments) if isinstance(a, cupy.ndarray)]
                written = [a for p, a in arrays if not p.startswith("const ")]
                self.note(kernel.name, [a for _, a in arrays], written)
            launch(kernel, grid, block, arguments, **more)

        def multiplied(plan, a, b, y, accumulate):
            if cupy.cuda.get_current_stream().is_capturing():
                self.note("product", [a, b], [y, *self.beside])
            multiply(plan, a, b, y, accumulate)

        def fused_with(epilogue, a, b, *, bias=None, aux=None, out=None):
            self.beside = [array for array in (bias, aux) if array is not None]
            try:
                return fused(epilogue, a, b, bias=bias, aux=aux, out=out)
            finally:
                self.beside = []

        def forked(branch, *args, **options):
            joined(branch)
            self.tips[branch.stream.ptr] = self.tips.get(branch.stream.ptr, []) + self.tips[branch.trunk.ptr]
            return run(branch, *args, **options)

        def joined(branch):
            if branch.open:
                self.tips[branch.trunk.ptr] = self.tips[branch.trunk.ptr] + self.tips[branch.stream.ptr]
            join(branch)

        self.beside = []
        monkeypatch.setattr(Kernel, "__call__", launched)
        monkeypatch.setattr(gemm.Plan, "multiply", multiplied)
        monkeypatch.setattr(graph.Branch, "run", forked)
        monkeypatch.setattr(graph.Branch, "join", joined)
        monkeypatch.setattr(users, "fused_product", fused_with)

    def note(self, name, reads, writes):
        stream = cupy.cuda.get_current_stream().ptr
        node = Node(name, *([part(a) for a in arrays] for arrays in (reads, writes)), self.tips.get(stream, []))
        self.nodes.append(node)
        self.tips[stream] = [node]

    def conflicts(self):
        """Pairs of nodes of which neither waits for the other, and of which one writes what the other uses."""
        found = []
        for i, b in enumerate(self.nodes):
            for a in self.nodes[:i]:
                if not a.precedes(b) and (meet(a.writes, b.reads + b.writes) or meet(a.reads, b.writes)):
                    found.append((a.name, b.name))
        return found


def part(array):
    """Where an array begins and ends in memory."""
    return array.data.ptr, array.data.ptr + array.nbytes


def meet(some, others):
    return any(a < d and c < b for a, b in some for c, d in others)


def tanh_gelu():
    return nn.GELU("tanh")


class Training:
    def __init__(self, sizes=(20, 16, 24, 16, 8), activation="relu", **options):
        rng = np.random.default_rng(0)
        self.model = nn.MLP(list(sizes), activation=activation, seed=1, device="cuda", **options)
        self.optimizer = gp.optim.Adam(self.model.parameters())
        self.x = gp.tensor(rng.standard_normal((12, sizes[0]), dtype=np.float32), device="cuda")
        self.labels = gp.tensor(rng.integers(0, sizes[-1], 12), device="cuda")

    def step(self, x, labels):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def run(self, step, times=4):
        return [step(self.x, self.labels).item() for _ in range(times)]


@pytest.fixture
def notes(monkeypatch):
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    return Notes(monkeypatch)


@pytest.mark.parametrize("layers", [1, 2, 4, 6])
def test_the_longest_chain_of_a_step(notes, layers):
    """Weight gradients but the last one run beside: 2 L + 2 of 3 L + 1 nodes follow each other, or 4 L of 5 L - 1."""
    costs = {True: (3 * layers + 1, 2 * layers + 2), False: (5 * layers - 1, 4 * layers)}
    for activation in ("relu", tanh_gelu, "tanh"):
        nodes, longest = costs[activation != "tanh"]
        notes.nodes.clear(), notes.tips.clear()
        training = Training((20, *[16] * (layers - 1), 8), activation)
        training.run(gp.capture(training.step), 2)
        assert len(notes.nodes) == nodes and not notes.conflicts()
        assert max(node.length for node in notes.nodes) == longest == notes.nodes[-1].length
        assert notes.nodes[-1].name.startswith("adam")
        assert all(node.precedes(notes.nodes[-1]) for node in notes.nodes[:-1])


@pytest.mark.parametrize(
    "options", [{"activation": "relu"}, {"activation": "gelu"}, {"dropout": 0.3}, {"norm": "layer"}], ids=str
)
def test_a_replay_gives_the_bits_of_the_function(notes, options):
    eager, captured = Training(**options), Training(**options)
    results = []
    for training, wrap in ((eager, lambda f: f), (captured, gp.capture)):
        gp.manual_seed(0)
        results.append(training.run(wrap(training.step)))
    assert results[0] == results[1] and not notes.conflicts()
    for p, q in zip(eager.model.parameters(), captured.model.parameters(), strict=True):
        assert p.numpy().tobytes() == q.numpy().tobytes()


def test_without_holding_memory_back_there_are_conflicts(notes, monkeypatch):
    """Those that the tests above look for."""
    from gpuprop.cuda.arena import Arena, Survey

    for kind in (Arena, Survey):
        monkeypatch.setattr(kind, "hold", lambda self, holding: None)
    training = Training((20, *[16] * 7, 8), tanh_gelu)
    training.run(gp.capture(training.step), 2)
    assert notes.conflicts()


def read_in_a_hook(training, x, labels):
    """A hook reads a gradient that was written beside, before the walk ends."""
    seen = []
    h = training.model[:2](x)
    h.register_hook(lambda dy: seen.append(training.model[-1].weight.grad * 2.0))
    F.cross_entropy(training.model[2:](h), labels).backward()
    return seen[0]


def read_afterwards(training, x, labels):
    F.cross_entropy(training.model(x), labels).backward()
    return training.model[-1].weight.grad * 2.0


def two_walks(training, x, labels):
    """The second one adds to what the first one wrote."""
    for factor in (1.0, 0.5):
        F.cross_entropy(training.model(x * factor), labels).backward()
    return training.model[0].weight.grad * 2.0


def one_layer_twice(training, x, labels):
    """Two records write to one gradient in one walk."""
    square = training.model[2:4]
    F.cross_entropy(training.model[4:](square(square(training.model[:2](x)))), labels).backward()
    return training.model[2].weight.grad * 2.0


def caught(training, x, labels):
    """An error in a walk that the function goes on after."""

    def fail(dy):
        raise KeyError("caught")

    h = training.model[:2](x)
    h.register_hook(fail)
    with contextlib.suppress(KeyError):
        F.cross_entropy(training.model[2:](h), labels).backward()
    return training.model[-1].weight.grad * 2.0


@pytest.mark.parametrize(
    "work", [read_in_a_hook, read_afterwards, two_walks, one_layer_twice, caught], ids=lambda work: work.__name__
)
def test_whoever_reads_a_gradient_waits_for_it(notes, work):
    def seen(wrap):
        training = Training((20, 16, 16, 16, 8))
        step = wrap(lambda x, labels: (training.optimizer.zero_grad(), work(training, x, labels))[1])
        return [step(training.x, training.labels).numpy().tobytes() for _ in range(3)]

    assert seen(lambda f: f) == seen(gp.capture) and not notes.conflicts()
