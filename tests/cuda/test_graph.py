"""Captured functions on a GPU: what a replay costs, what its graph consists of, and what the host sends to it."""

import gc
import tracemalloc
from collections import deque

import numpy as np
import pytest

import gpuprop as gp
import gpuprop.nn.functional as F
from gpuprop import nn, tape
from gpuprop.errors import BoundsError, CaptureError

pytestmark = pytest.mark.cuda
cupy = pytest.importorskip("cupy")
arena = pytest.importorskip("gpuprop.cuda.arena")

FREE = ("host_to_device", "device_to_host", "synchronizations", "mallocs", "memsets")


class Training:
    """An MLP, Adam and a batch."""

    def __init__(self, sizes=(20, 16, 12, 5), activation="relu", optimizer=gp.optim.Adam, dtype=np.float32, **options):
        rng = np.random.default_rng(0)
        self.model = nn.MLP(list(sizes), activation=activation, seed=1).to("cuda").to(dtype)
        self.optimizer = optimizer(self.model.parameters(), **{"lr": 1e-2, **options})
        self.x = gp.tensor(rng.standard_normal((12, sizes[0])).astype(dtype), device="cuda")
        self.labels = gp.tensor(rng.integers(0, sizes[-1], 12), device="cuda")

    def step(self, x, labels):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def captured(self):
        step = gp.capture(self.step)
        for _ in range(3):
            step(self.x, self.labels)
        return step

    def values(self):
        return [p.numpy().tobytes() for p in self.model.parameters()]


def agree(eager, captured):
    assert eager.values() == captured.values()


@pytest.mark.parametrize("optimizer", [gp.optim.Adam, gp.optim.SGD, gp.optim.RMSprop, gp.optim.Adagrad])
def test_a_replay_is_one_launch(count, optimizer):
    training = Training(optimizer=optimizer)
    step = training.captured()
    counted = count(lambda: step(training.x, training.labels))
    assert all(counted[name] == 0 for name in FREE)
    assert counted["graph_launches"] == 1
    assert counted["device_to_device"] == 2  # one for each argument
    assert counted["kernel_launches"] == counted["graph_nodes"] - counted["gemm_calls"]  # all of them in the graph
    counted = count(lambda: step(*step.inputs))
    assert counted["device_to_device"] == 0


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_clipping_adds_one_node(layers):
    """To 5 L - 1, or 3 L + 1 with epilogues: test_epilogues.py."""
    for activation, nodes in [("relu", 3 * layers + 1), ("tanh", 5 * layers - 1)]:
        clipped = Training((20, *[16] * (layers - 1), 5), activation, max_grad_norm=1.0).captured().recording.nodes()
        assert len(clipped) == nodes + 1 and clipped.count("cublasLtMatmul") == 3 * layers - 1


def twice(first, second):
    first.backward(retain_graph=True)
    second.backward()
    first.backward(retain_graph=True)
    first.backward()


WALKS = {  # of two losses of one layer: the gradient of its bias, which a loss can write at once, is at home for one of them at most
    "first": lambda bias, first, second: first.backward(),
    "second": lambda bias, first, second: second.backward(),
    "one after the other": lambda bias, first, second: (first.backward(), second.backward()),
    "in the other order": lambda bias, first, second: (second.backward(), first.backward()),
    "sum": lambda bias, first, second: (first + second).backward(),
    "scaled": lambda bias, first, second: (first * 0.5).backward(),
    "again": lambda bias, first, second: twice(first, second),
    "none": lambda bias, first, second: None,
    "asked for by name": lambda bias, first, second: (walk(bias, first), second.backward())[0],
    "none by name": lambda bias, first, second: walk(bias, first),
}


def walk(bias, loss):
    (found,) = tape.walk([(loss, tape.ONE)], wanted=[bias._leaf]).values()
    return gp.Tensor(found)


@pytest.mark.parametrize("walks", WALKS)
def test_gradients_written_before_the_walk(walks):
    def trained(wrap):
        training = Training((20, 5), max_grad_norm=0.1)
        bias = list(training.model.parameters())[-1]

        def step(x, labels):
            training.optimizer.zero_grad()
            losses = F.cross_entropy(training.model(x), labels), F.cross_entropy(training.model(2 * x), labels)
            found = WALKS[walks](bias, *losses)
            training.optimizer.step()
            return [*losses, *([found] if isinstance(found, gp.Tensor) else [])]

        step = wrap(step)
        results = [
            [t.item() if t.size == 1 else t.tolist() for t in step(training.x, training.labels)] for _ in range(4)
        ]
        return training, results

    (eager, expected), (captured, found) = trained(lambda f: f), trained(gp.capture)
    assert expected == found
    agree(eager, captured)


def test_options_reach_the_device_where_they_changed(count):
    eager, captured = Training(max_grad_norm=0.1), Training(max_grad_norm=0.1)
    step = captured.captured()
    for _ in range(3):
        eager.step(eager.x, eager.labels)
    launches = count(lambda: step(captured.x, captured.labels))["kernel_launches"]
    eager.step(eager.x, eager.labels)
    for training in (eager, captured):
        training.optimizer.param_groups[0].update(lr=0.1, weight_decay=0.3, betas=(0.5, 0.6))
        training.optimizer.max_grad_norm = 0.2
    assert count(lambda: step(captured.x, captured.labels))["kernel_launches"] == launches + 1
    assert count(lambda: step(captured.x, captured.labels))["kernel_launches"] == launches
    for _ in range(2):
        eager.step(eager.x, eager.labels)
    agree(eager, captured)
    assert "1 recordings" in repr(step)


@pytest.mark.parametrize("change", [{"amsgrad": True}, {"max_grad_norm": 0.1}, {"ema_decay": 0.9}, {"maximize": True}])
def test_other_kinds_of_steps_record_anew(change):
    eager, captured = Training(), Training()
    step = captured.captured()
    for _ in range(3):
        eager.step(eager.x, eager.labels)
    for training in (eager, captured):
        for name, value in change.items():
            if hasattr(training.optimizer, name):
                setattr(training.optimizer, name, value)
            else:
                training.optimizer.param_groups[0][name] = value
    for _ in range(4):
        eager.step(eager.x, eager.labels), step(captured.x, captured.labels)
    agree(eager, captured)


def test_loaded_state_is_gone_on_from():
    eager, captured = Training(), Training()
    step = captured.captured()
    for _ in range(3):
        eager.step(eager.x, eager.labels)
    saved = eager.optimizer.state_dict()
    for training in (eager, captured):
        training.optimizer.load_state_dict(saved)
    for _ in range(4):
        eager.step(eager.x, eager.labels), step(captured.x, captured.labels)
    agree(eager, captured)


def test_usual_steps_and_replays_take_turns():
    eager, captured = Training(), Training()
    step = gp.capture(captured.step)
    for i in range(12):
        eager.step(eager.x, eager.labels)
        (captured.step if i % 3 == 2 else step)(captured.x, captured.labels)
    agree(eager, captured)


def test_two_steps_of_one_optimizer_with_a_schedule_between():
    def trained(wrap):
        training = Training()
        schedule = gp.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.5)

        def twice(x, labels):
            training.step(x, labels)
            schedule.step()
            return training.step(x, labels)

        twice = wrap(twice)
        for _ in range(5):
            twice(training.x, training.labels)
        return training

    agree(trained(lambda f: f), trained(gp.capture))


@pytest.mark.parametrize("warmup", [0, 1])
def test_steps_that_the_device_may_skip(warmup):
    def trained(wrap):
        training = Training(sizes=(20, 5))

        def step(x, labels, skip):
            training.optimizer.zero_grad()
            F.cross_entropy(training.model(x), labels).backward()
            training.optimizer.step(skip=skip)

        step = wrap(step)
        for i in range(7):
            step(training.x, training.labels, gp.tensor([i % 3 == 2], dtype=np.float32, device="cuda"))
        training.step(training.x, training.labels)  # on its own
        assert next(iter(training.optimizer.state.values()))["step"] == 6
        return training

    agree(trained(lambda f: f), trained(lambda f: gp.capture(f, warmup=warmup)))


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "ema_decay": 0.9}])
def test_the_first_step_of_all_can_be_recorded(options):
    eager, captured = Training(**options), Training(**options)
    step = gp.capture(captured.step, warmup=0)
    for _ in range(4):
        eager.step(eager.x, eager.labels), step(captured.x, captured.labels)
    agree(eager, captured)


def test_labels_out_of_range_raise_after_a_replay_too():
    training = Training()
    step = training.captured()
    step(training.x, training.labels).item()
    wrong = training.labels.clone()
    wrong[0] = 5
    loss = step(training.x, wrong)
    with pytest.raises(BoundsError, match="cross_entropy"):
        loss.item()
    step(training.x, training.labels).item()


def test_random_numbers_go_on_without_the_host(count):
    def drawn(wrap):
        generator = gp.Generator("cuda", 3)
        draw = wrap(lambda x: x + gp.rand(4, device="cuda", generator=generator))
        zeros = gp.zeros(4, device="cuda")
        seen = [draw(zeros).tolist() for _ in range(5)]
        gp.rand(7, device="cuda", generator=generator)
        seen += [draw(zeros).tolist() for _ in range(2)]
        return seen, generator.get_state(), lambda: draw(zeros)

    expected, found = drawn(lambda f: f), drawn(gp.capture)
    assert expected[:2] == found[:2]
    counted = count(found[2])
    assert counted["kernel_launches"] == counted["graph_nodes"] == 3  # numbers, sum, and the base goes on
    assert all(counted[name] == 0 for name in FREE)


def test_replays_on_another_stream_follow_those_before():
    training, reference = Training(), Training()
    step = training.captured()
    for _ in range(3):
        reference.step(reference.x, reference.labels)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        step(training.x, training.labels)
    reference.step(reference.x, reference.labels)
    step(training.x, training.labels)
    reference.step(reference.x, reference.labels)
    stream.synchronize()
    agree(reference, training)


def test_other_memory_is_not_touched_by_a_replay():
    """What a run frees is free for that recording alone."""
    training = Training()
    step = training.captured()
    others = [cupy.full(n, 7.0, np.float32) for n in (1, 12 * 16, 12 * 12, 12 * 5, 5) for _ in range(20)]
    step(training.x, training.labels)
    assert all(bool((other == 7).all()) for other in others)


def test_constants_of_the_host_are_those_of_the_recording():
    def f(x):
        return x + gp.tensor([1.0, 2.0, 3.0], device="cuda") * gp.tensor([2.0, 4.0, 8.0], device="cuda")

    add, x = gp.capture(f), gp.ones(3, device="cuda")
    for _ in range(4):
        np.testing.assert_array_equal(add(x).numpy(), [3.0, 9.0, 25.0])


def test_clipping_by_hand_is_recorded_with_its_table():
    def trained(wrap):
        training = Training()

        def step(x, labels):
            training.optimizer.zero_grad()
            F.cross_entropy(training.model(x), labels).backward()
            norm = nn.utils.clip_grad_norm_(training.model.parameters(), 0.05)
            training.optimizer.step()
            return norm

        step = wrap(step)
        norms = [step(training.x, training.labels).item() for _ in range(5)]
        return training, norms

    (eager, expected), (captured, found) = trained(lambda f: f), trained(gp.capture)
    assert expected == found
    agree(eager, captured)


def test_arguments_of_two_devices_are_refused():
    add = gp.capture(lambda x, y: x + gp.asarray(y, device="cuda"), warmup=0)
    with pytest.raises(CaptureError, match="one device, got cpu and cuda:0"):
        add(gp.ones(3, device="cuda"), gp.ones(3, device="cpu"))
    scale = gp.capture(lambda x: gp.ones(3, device="cuda") * x.to("cuda"))
    with pytest.raises(CaptureError, match=r"multiply on cuda:0 among calls on cpu .*move"):
        for _ in range(2):
            scale(gp.ones(3, device="cpu"))


def test_without_arguments_the_ops_say_which_device():
    total = gp.zeros(3, device="cuda")
    counter = gp.capture(lambda: total.add_(1.0) * 2.0)
    for i in range(1, 5):
        np.testing.assert_array_equal(counter().numpy(), [2.0 * i] * 3)


@pytest.mark.parametrize(
    "read",
    [lambda x, array: float(array[0]), lambda x, array: x.cpu(), lambda x, array: cupy.nonzero(array)],
    ids=["float", "cpu", "nonzero"],
)
def test_what_cupy_refuses_names_the_line(read):
    x, array = gp.ones(3, device="cuda"), cupy.ones(3)
    f = gp.capture(lambda x: (x * 2.0, read(x, array))[0])
    f(x)
    with pytest.raises(CaptureError, match=r"capture: .*test_graph\.py:\d+: .*; "):
        f(x)
    assert not cupy.cuda.get_current_stream().is_capturing()
    np.testing.assert_array_equal((x + 1.0).numpy(), [2.0] * 3)


def test_without_cublaslt_it_says_what_to_install(monkeypatch):
    from gpuprop.cuda import gemm

    monkeypatch.setattr(gemm, "load", lambda: (None, gemm.NEEDS))
    monkeypatch.setattr(gemm, "_plans", {})
    multiply = gp.capture(lambda x: x @ x)
    x = gp.ones(3, 3, device="cuda")
    multiply(x)
    with pytest.raises(CaptureError, match=r"matmul.*nvmath-python is not installed.*test_graph\.py:\d+.*install"):
        multiply(x)


def test_recordings_that_are_dropped_give_their_memory_back():
    training = Training()
    pool, used = cupy.get_default_memory_pool(), []
    for _ in range(6):
        step = training.captured()
        assert step.recording.report()["arena_bytes"] > 0
        del step
        gc.collect()
        used.append((pool.used_bytes(), cupy.cuda.runtime.memGetInfo()[0]))
    assert used[2:] == [used[2]] * 4


def test_a_report_and_a_drawing():
    recording = Training().captured().recording
    report = recording.report()
    assert report["nodes"] == sum(report["calls"].values()) == recording.dot().count("label=")
    assert any("adam_step" in name for name in report["calls"])
    assert report["arena_bytes"] > 0 and report["input_bytes"] == 12 * 20 * 4 + 12 * 8
    assert recording.dot().startswith("digraph")


# --- Memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("options", [{}, {"norm": "layer"}, {"norm": "batch"}, {"dropout": 0.2}], ids=str)
@pytest.mark.parametrize("sizes", [(64, 64, 64, 10), (100, 256, 128, 10), (32, 128, 96, 64, 48, 16)], ids=str)
def test_memory_is_what_lives_at_once_and_little_more(activation, options, sizes):
    model = nn.MLP(sizes, activation=activation, seed=1, device="cuda", **options)
    optimizer = gp.optim.Adam(model.parameters())

    @gp.capture
    def step(x, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(2):
        step(gp.ones(48, sizes[0], device="cuda"), gp.zeros(48, dtype=np.int64, device="cuda"))
    report = step.recording.report()
    assert report["peak_bytes"] <= report["arena_bytes"] <= 1.15 * report["peak_bytes"]


def test_a_survey_lays_out_what_does_not_live_together():
    survey = arena.Survey(cupy.cuda.alloc)
    large, small = survey.allocate(4000), survey.allocate(100)
    del large
    lasting = survey.allocate(512)
    survey.hold(True)
    del small  # in use by other work until the hold is over
    last = survey.allocate(3000)
    survey.hold(False)
    del last
    plan = survey.plan()
    assert plan.size == 4096 + 512 and plan.places == {4096: deque([0]), 512: deque([4096, None]), 3072: deque([0])}
    assert lasting.mem.size >= 512


def test_an_arena_follows_a_plan_where_it_can():
    """An array in the place of another one that lives longer than in the survey goes elsewhere, as does one that was not foreseen."""
    places = {1024: deque([0, 512]), 512: deque([0])}
    made = arena.Arena(cupy.cuda.alloc, arena.Plan(2048, places))
    first, second, third, fourth = (made.allocate(size) for size in (1000, 1000, 512, 2048))
    block = made.blocks[0].start
    assert first.ptr == block and made.size == 2048 + 1024 + 512 + 2048 == made.peak + 1024
    spans = sorted((pointer.ptr, pointer.ptr + pointer.mem.size) for pointer in (first, second, third, fourth))
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))
    where = second.ptr
    del second
    assert made.allocate(1024).ptr == where  # nothing is planned for it


def test_1000_captures_leak_nothing():
    weight, x = gp.ones(6, requires_grad=True, device="cuda"), gp.ones(4, 6, device="cuda")

    def step(x):
        weight.grad = None
        loss = (x * weight).sum()
        loss.backward()
        return loss

    def some(count):
        for _ in range(count):
            captured = gp.capture(step)
            for _ in range(2):
                captured(x)
        del captured
        gc.collect()
        return tracemalloc.get_traced_memory()[0], cupy.get_default_memory_pool().used_bytes()

    tracemalloc.start()
    try:
        host, device = some(100)  # caches fill
        host_after, device_after = some(1000)
        assert host_after - host < 50_000 and device_after == device
    finally:
        tracemalloc.stop()


def test_within_no_grad():
    """What is recorded in `no_grad` is not repeated outside of it, nor the other way round."""
    training = Training()
    predict = gp.capture(lambda x: training.model(x))
    for enabled in (False, True, False, True):
        for _ in range(3):
            with tape.Mode(enabled=enabled):
                same = predict(training.x).numpy().tobytes() == training.model(training.x).numpy().tobytes()
            assert same
    assert "2 recordings" in repr(predict)
    training.captured()  # training goes on
