"""Uses of `gp.capture` that are easy to get wrong: each gives what the function gives, or is refused."""

import copy
import pickle

import numpy as np
import pytest

import gpuprop as gp
import gpuprop.nn.functional as F
from gpuprop import nn
from gpuprop.errors import CaptureError, MutationError

RNG = np.random.default_rng(0)


def flat(result):
    return [result] if isinstance(result, gp.Tensor) else [leaf for part in result or () for leaf in flat(part)]


def assert_repeats(function, *arguments, turns=6):
    """Each turn's arguments through the function and through what is captured of it, to the bit."""
    captured = gp.capture(function)
    for turn in range(turns):
        given = [make(turn) for make in arguments]
        again = [copy.deepcopy(a) for a in given]
        for a, b in zip(flat(function(*given)), flat(captured(*again)), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert a.numpy().tobytes() == b.numpy().tobytes(), turn
    assert captured.recording is not None
    return captured


def floats(*shape, dtype=np.float32):
    return lambda turn: gp.tensor((RNG.standard_normal(shape) + turn).astype(dtype))


def plain(*shape):
    return lambda turn: (RNG.standard_normal(shape) + turn).astype(np.float32)


def constants(x):
    made = [gp.tensor([0.0, 0.0, 0.0]), gp.arange(3.0), gp.linspace(0.0, 1.0, 3), gp.zeros(3), gp.eye(3)[0].clone()]
    with gp.no_grad():
        for each in made:
            each += x.sum(axis=0)
    return made


@pytest.mark.parametrize(
    "function, arguments",
    [
        (lambda x: (x.mean(), x.var(), x.mean(axis=0)), [floats(5, 4, dtype=np.float16)]),
        (lambda x: F.layer_norm(x, (4,)), [floats(5, 4, dtype=np.float16)]),
        (constants, [floats(2, 3)]),
        (lambda x: gp.asarray(x / 2.0).sum() + gp.numpy.sin(gp.asarray(x)).sum(), [plain(4, 3)]),
        (lambda x: gp.asarray(gp.numpy.exp(x) * 2.0), [plain(4, 3)]),
        (lambda x: x * copy.deepcopy(x), [floats(4, 3)]),
        (lambda x, y: (x + y, x @ y.T), [floats(40, 80), floats(40, 80)]),
        (lambda x: (x, [x, x[1:]], x * 1.0), [floats(4, 3)]),
        (lambda x: x.sum(), [lambda turn: gp.tensor(float(turn))]),
        (lambda x: (x * 2).sum(), [lambda turn: gp.tensor(np.zeros((0, 3), np.float32))]),
    ],
)
def test_results_are_those_of_the_function(function, arguments):
    assert_repeats(function, *arguments)


def test_ops_of_others_are_called_as_they_are():
    """What a rule does beyond NumPy's functions, or by values, is not looked into."""
    from gpuprop._op import REGISTRY
    from gpuprop.testing import real_line

    try:

        @gp.op(samples=real_line, smooth=False)
        def odd_scale(xp, x):
            return x * float(np.max(np.abs(np.asarray(x)))) if np.asarray(x).sum() > 0 else x

        assert_repeats(odd_scale, lambda turn: gp.tensor(RNG.standard_normal(5) * (-1) ** turn))
    finally:
        REGISTRY.pop("odd_scale", None)


@pytest.mark.parametrize("size", [3, 3000, 300_000])
def test_results_are_arguments_of_the_next_call(size):
    def f(h):
        a = h * 0.5 + 1
        return a, a * h

    def run(function):
        h, found = gp.tensor(np.linspace(-1, 1, size).astype(np.float32)), []
        for _ in range(6):
            h, b = function(h)
            found.append(b.numpy().copy())
        return found

    for a, b in zip(run(f), run(gp.capture(f)), strict=True):
        np.testing.assert_array_equal(a, b)


# --- State that changes between calls -------------------------------------------------------------------------------


def test_gradients_that_are_only_read():
    def run(wrap):
        w = gp.tensor(np.zeros(2, np.float32), requires_grad=True)
        layer = nn.Linear(3, 2, generator=gp.Generator("cpu", 1))
        optimizer = gp.optim.SGD([w], lr=1.0)
        update = wrap(lambda: (optimizer.step(), optimizer.zero_grad())[0] or w.detach() * 1.0)
        clip = wrap(lambda: gp.nn.utils.clip_grad_norm_(layer.parameters(), 1.0))
        read, seen = wrap(lambda: layer.weight.grad * 1.0), []
        for i in range(6):
            (w * (i + 1)).sum().backward()
            layer.zero_grad()
            (layer(gp.ones(1, 3)) * (i + 1)).sum().backward()
            seen += [update().numpy().copy(), clip().numpy().copy(), read().numpy().copy()]
        return seen

    for a, b in zip(run(lambda f: f), run(gp.capture), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parameters_that_are_replaced():
    layer = nn.Linear(3, 2, generator=gp.Generator("cpu", 1))
    run, shown, x = gp.capture(lambda x: layer(x)), gp.capture(lambda: layer.weight), gp.ones(2, 3)
    for i in range(9):
        if i == 2:
            layer.weight.data = np.full((2, 3), 0.5, np.float32)
        if i == 4:
            layer.weight = nn.Parameter(np.zeros((2, 3), np.float32))
        if i == 7:
            layer.weight.data = np.ones((2, 3), np.float32)
        np.testing.assert_array_equal(run(x).numpy(), layer(x).numpy())
        if i < 4:
            np.testing.assert_array_equal(shown().numpy(), layer.weight.numpy())


def test_modes_that_alternate():
    model = nn.Sequential(nn.Linear(4, 4, generator=gp.Generator("cpu", 1)), nn.ReLU(), nn.Dropout(0.5))
    run, x = gp.capture(lambda x: model(x)), gp.ones(2, 4)
    for i in range(8):
        model.train(i % 2 == 0)
        y = run(x)
        if i % 2:
            np.testing.assert_array_equal(y.numpy(), model(x).numpy())
    assert "2 recordings" in repr(run)
    layer = nn.Linear(4, 4)
    f = gp.capture(lambda x: gp.value_and_grad(lambda x: layer(x).sum())(x))
    f(x)
    layer.requires_grad_(False)
    f(x), f(x)


def test_hooks_that_come_later():
    w, seen = gp.ones(3, requires_grad=True), []

    def step(x):
        w.grad = None
        (w * x).sum().backward()

    captured = gp.capture(step)
    for i in range(5):
        if i == 3:
            w.register_hook(lambda g: seen.append(g) or g * 2.0)
        captured(gp.ones(3))
    assert seen
    np.testing.assert_array_equal(w.grad.numpy(), 2.0)


def test_numbers_that_are_equal_but_not_the_same():
    scaled = gp.capture(lambda x, k: x * k)
    x = gp.arange(3)
    assert [scaled(x, k).dtype for k in (1, 1, 1, 1.0, True)][-2:] == [np.float64, (x * True).dtype]
    divided = gp.capture(lambda x, k: x / k)
    with np.errstate(divide="ignore"):
        for k in (0.0, 0.0, 0.0, -0.0):
            found = divided(gp.ones(2), k)
    assert (found.numpy() == -np.inf).all()


# --- Results --------------------------------------------------------------------------------------------------------


def test_results_are_off_the_tape_from_the_first_call_on():
    layer = nn.Linear(3, 2)
    run = gp.capture(lambda x: layer(x))
    assert not any(run(gp.ones(1, 3)).requires_grad for _ in range(4))


def test_parts_of_results_are_overwritten_too():
    double = gp.capture(lambda x: x * 2)
    for _ in range(3):
        result = double(gp.ones(3))
    parts = [result.detach(), result[0:2], result.reshape(3, 1)]
    kept = copy.deepcopy(result), pickle.loads(pickle.dumps(result)), result.clone()
    double(gp.ones(3) * 5)
    for part in parts:
        with pytest.raises(CaptureError, match="overwritten"):
            part.numpy()
    for each in kept:
        np.testing.assert_array_equal(each.numpy(), 2.0)


# --- Refused --------------------------------------------------------------------------------------------------------


def in_place(x):
    with gp.no_grad():
        x += 1
    return x.sum()


def of_a_shared_array(x):
    total = gp.asarray(np.zeros(3, np.float32))
    total += x
    return total


@pytest.mark.parametrize(
    "function, what",
    [
        (in_place, "change of an argument in place"),
        (of_a_shared_array, "gp.asarray shares"),
        (lambda x: x * gp.asarray(np.from_dlpack(x)), "read of a value"),
        (lambda x: gp.asarray(x.data * 2), r"\.data"),
    ],
)
def test_refused(function, what):
    captured, x = gp.capture(function), gp.ones(3)
    captured(x)
    with pytest.raises(CaptureError, match=what):
        captured(x)


def test_an_optimizer_on_copies_is_refused():
    p = nn.Parameter(np.zeros((3, 4), np.float32))
    p.data = np.asfortranarray(np.ones((3, 4), np.float32))
    optimizer = gp.optim.SGD([p], lr=0.1)

    @gp.capture
    def step(x):
        optimizer.zero_grad()
        (p * x).sum().backward()
        optimizer.step()

    step(gp.ones(3, 4))
    before = p.numpy().copy()
    with pytest.raises(CaptureError, match=r"not in C order.*SGD\.step"):
        step(gp.ones(3, 4))
    np.testing.assert_array_equal(p.numpy(), before)


def test_a_list_in_itself_is_refused():
    endless: list = []
    endless.append(endless)
    with pytest.raises(TypeError, match="nested some hundred levels"):
        gp.capture(lambda x: gp.ones(2))(endless)


def test_what_was_listened_to_is_not_kept_for_ever():
    f = gp.capture(lambda x, k: x * k)
    for k in range(100):
        f(gp.ones(2), float(k))
    assert len(f._listened) < 50


# --- What Python has kept from earlier calls ------------------------------------------------------------------------


def carried(state, x):
    state["h"] = gp.numpy.tanh(state["h"] + x)
    return state["h"] * 2.0


def added(state, x):
    state["h"] = state["h"] + x.sum().detach()
    return x * 1.0


@pytest.mark.parametrize("function, first", [(carried, gp.zeros(3)), (added, gp.zeros(()))])
def test_state_that_names_carry_is_refused(function, first):
    state = {"h": first}
    captured = gp.capture(lambda x: function(state, x))
    captured(gp.ones(3))
    with pytest.raises(CaptureError, match=r"that an earlier run made.*copy_"):
        captured(gp.ones(3))


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"drop_last": True}])
def test_a_loader_in_a_captured_function(place, options):
    def run(wrap):
        def epoch(x):
            total = gp.zeros(3, device=place)
            for (batch,) in gp.data.DataLoader((x,), 4, generator=generator, **options):
                total = total * 0.5 + batch.sum(axis=0)
            return total + gp.data.TensorDataset(x).take(gp.tensor([1, 3], device=place)).tensors[0].sum(axis=0)

        generator = gp.Generator(place, 3) if options.get("shuffle") else None
        epoch = wrap(epoch)
        return [epoch(gp.arange(30.0, device=place).reshape(10, 3) * i).numpy().tobytes() for i in range(5)]

    assert run(lambda f: f) == run(gp.capture)


def test_the_order_of_keywords_is_part_of_the_signature():
    captured = gp.capture(lambda **given: gp.numpy.stack(list(given.values())))
    a, b = gp.zeros(2), gp.ones(2)
    for _ in range(3):
        assert captured(a=a, b=b).numpy()[0, 0] == 0
    for _ in range(3):
        assert captured(b=b, a=a).numpy()[0, 0] == 1
    quotient = gp.capture(lambda x, k: x / k)
    with np.errstate(divide="ignore"):
        for k in (0.0, 0.0, 0.0, -0.0):
            result = quotient(gp.ones(1), np.float32(k))
    assert result.numpy()[0] == -np.inf


def test_state_that_names_carry_is_refused_in_another_mode_too():
    layer, state = nn.Linear(3, 3, generator=gp.Generator("cpu", 1)), {"h": gp.zeros(3)}

    def function(x):
        state["h"] = gp.numpy.tanh(state["h"] + layer(x)).detach()
        return state["h"] * 2.0 if layer.weight.requires_grad else state["h"] + 2.0

    captured = gp.capture(function)
    captured(gp.ones(3))
    state["h"] = gp.zeros(3)
    layer.requires_grad_(False)
    captured(gp.ones(3))  # in another state than was listened to
    with pytest.raises(CaptureError, match="that an earlier run made"):
        captured(gp.ones(3))


def test_state_that_is_changed_in_place():
    def run(wrap):
        total = gp.zeros(3)
        step = wrap(lambda x: total.add_(x) * 2.0)
        return [step(gp.ones(3) * i).numpy().copy() for i in range(5)]

    np.testing.assert_array_equal(run(lambda f: f), run(gp.capture))


def test_names_that_mean_other_objects():
    def run(wrap):
        model = nn.Linear(3, 2, generator=gp.Generator("cpu", 1))
        optimizer = gp.optim.SGD(model.parameters(), lr=0.1)

        def step(x):
            optimizer.zero_grad()
            loss = (model(x) ** 2).sum()
            loss.backward()
            optimizer.step()
            return loss

        step, seen = wrap(step), []
        for i in range(12):
            if i == 4:
                model = nn.Linear(3, 2, generator=gp.Generator("cpu", 2))
                optimizer = gp.optim.SGD(model.parameters(), lr=0.1)
            if i == 8:
                optimizer = gp.optim.Adam(model.parameters(), lr=0.1)
            seen.append(step(gp.ones(4, 3)).item())
        return seen

    assert run(lambda f: f) == run(gp.capture)


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.T,
        lambda w: w[:2].T,
        lambda w: w.reshape(-1)[:6].reshape(2, 3).T,
        lambda w: gp.numpy.broadcast_to(w[0], (4, 3)).T,
        lambda w: w.detach().T,
    ],
)
def test_views_of_parameters(view):
    runs, w = [], nn.Parameter(RNG.standard_normal((4, 3), dtype=np.float32))

    def function(x):
        runs.append(None)
        return x @ view(w)

    captured = gp.capture(function)
    for i in range(5):
        x = gp.ones(5, 3) * i
        assert captured(x).numpy().tobytes() == (x @ view(w)).numpy().tobytes()
    assert len(runs) == 2


class Trainer:
    """What scripts have: a model, an optimizer and the last loss as attributes, among them some named like a tensor's methods."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(3, 2, generator=gp.Generator("cpu", 1)), nn.Dropout(0.5))
        self.model.step = 0
        self.optimizer = gp.optim.SGD(self.model.parameters(), lr=0.1)
        self.runs = 0

    def train(self, x):
        self.runs += 1
        self.model.train()
        self.optimizer.zero_grad()
        self.loss = (self.model(x) ** 2).mean()
        self.loss.backward()
        self.optimizer.step()
        return self.loss

    def predict(self, x):
        self.runs += 1
        with gp.no_grad():
            return self.model(x).mean()


def test_what_changes_beside_the_function_is_no_reason_to_record_anew():
    trainer = Trainer()
    train, predict = gp.capture(trainer.train), gp.capture(trainer.predict)
    for _ in range(6):
        for rows in (4, 4, 2):
            trainer.mean = train(gp.ones(rows, 3)).clone()
            trainer.model.step += 1
        trainer.model[1].p = float("0.25")  # equal, and another object
        predict(gp.ones(4, 3))
    assert trainer.runs == 6 + 2  # two shapes of training, the first p and the second; predictions


def test_numbers_of_modules():
    def run(wrap):
        model = nn.Sequential(nn.Dropout(0.5, generator=gp.Generator("cpu", 1)), nn.BatchNorm1d(4))
        model.calls = 0

        def step(x):
            model.calls += 1  # changes in each run, and is no reason to record anew
            return model(x)

        step, seen = wrap(step), []
        for i in range(12):
            if i == 4:
                model[0].p = 0.1
            if i == 8:
                model[1].momentum = 0.5
            step(gp.ones(5, 4) * (i + 1))
            seen.append([model[1].running_mean.numpy().copy(), model[1].running_var.numpy().copy()])
        return seen, step

    eager, (captured, step) = run(lambda f: f)[0], run(gp.capture)
    for a, b in zip(eager, captured, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "3 recordings" in repr(step)


def test_values_of_results_outlive_the_next_call():
    captured, kept = gp.capture(lambda x: (x * 2.0, x.sum())), []
    for i in range(5):
        a, b = captured(gp.ones(3) * i)
        kept.append((a.numpy(), b.detach().cpu().numpy(), np.asarray(a)))
    for i, (a, b, c) in enumerate(kept):
        assert a.tolist() == c.tolist() == [2 * i] * 3 and b == 3 * i


def test_arrays_in_arrays_out():
    captured, kept = gp.capture(gp.value_and_grad(lambda x: (x * x).sum())), []
    for i in range(4):
        kept.append(captured(np.full(3, i, np.float32)))
    for i, (value, gradient) in enumerate(kept):
        assert type(value) is type(gradient) is np.ndarray
        assert value == 3 * i * i and gradient.tolist() == [2 * i] * 3


def test_leaves_of_the_run():
    runs, layer = [], nn.Linear(3, 1, generator=gp.Generator("cpu", 1))

    def step(x):
        runs.append(None)
        z = x.clone()
        z.requires_grad = True
        layer.zero_grad()
        (layer(z) ** 2).sum().backward()
        return z.grad, gp.grad(lambda v: (layer(v) ** 3.0).sum())(x)

    captured = gp.capture(step)
    for i in range(6):
        x = gp.ones(2, 3) * i
        assert [t.numpy().tobytes() for t in captured(x)] == [t.numpy().tobytes() for t in step(x)]
    assert len(runs) == 2 + 6


@pytest.mark.parametrize("norm_type", [1.5, 2.0, 3.0, 4.0])
def test_clipping_by_hand(norm_type):
    def run(wrap):
        layer, seen = nn.Linear(3, 2, generator=gp.Generator("cpu", 1)), []

        def step(x):
            layer.zero_grad()
            layer(x).sum().backward()
            norm = nn.utils.clip_grad_norm_(layer.parameters(), 2.0, norm_type)
            nn.utils.clip_grad_value_(layer.parameters(), 0.5)
            return norm, layer.weight.grad * 1.0

        step = wrap(step)
        for i in range(8):
            seen += [t.numpy().tobytes() for t in step(gp.ones(4, 3) * (i + 0.1))]
        return seen

    assert run(lambda f: f) == run(gp.capture)


@pytest.mark.parametrize(
    "write", [lambda y: np.clip(y, -1, 1, out=y), lambda y: y.clip(-1, 1, out=y), lambda y: y.cumsum(0, out=y)]
)
def test_methods_of_arrays_that_write(write):
    def function(x):
        y = x * 2.0
        write(y)
        return gp.asarray(y)

    captured = gp.capture(function)
    for i in range(4):
        x = np.linspace(-i, i, 7).astype(np.float32)
        assert captured(x).numpy().tobytes() == function(x).numpy().tobytes()


# --- Gradients, and what is changed in place ------------------------------------------------------------------------


@pytest.mark.parametrize("forgotten", ["before", "at the end"])
@pytest.mark.parametrize(
    "make", [nn.Parameter, lambda a: gp.tensor(a, requires_grad=True)], ids=["parameter", "tensor"]
)
def test_gradients_are_clipped_by_the_norm_of_this_run(make, forgotten):
    def run(wrap):
        w = make(np.ones(2, np.float32))
        optimizer = gp.optim.SGD([w], lr=1.0, max_grad_norm=0.5)

        def step(x):
            (w * x).sum().backward()
            optimizer.step()
            if forgotten == "at the end":
                optimizer.zero_grad()
            return w.detach() * 1.0

        step, seen = wrap(step), []
        for i in range(5):
            if forgotten == "before":
                optimizer.zero_grad()
            seen.append(step(gp.ones(2) * (i + 1)).numpy().copy())
        return seen

    for a, b in zip(run(lambda f: f), run(gp.capture), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_gradient_that_the_user_put_there_is_not_part_of_the_norm():
    def run(wrap):
        w = gp.tensor(np.ones(2, np.float32), requires_grad=True)
        optimizer = gp.optim.SGD([w], lr=1.0, max_grad_norm=0.5)
        step = wrap(
            lambda x: (optimizer.zero_grad(), (w * x).sum().backward(), optimizer.step())[0] or w.detach() * 1.0
        )
        for i in range(4):
            w.grad = gp.full((2,), 100.0 * i)
            seen = step(gp.ones(2)).numpy().copy()
        return seen

    np.testing.assert_array_equal(run(lambda f: f), run(gp.capture))


@pytest.mark.parametrize(
    "make", [nn.Parameter, lambda a: gp.tensor(a, requires_grad=True)], ids=["parameter", "tensor"]
)
def test_adding_to_a_gradient_is_a_change_in_place(make):
    w = make(np.ones(3, np.float32))
    step = gp.capture(lambda x: (w * x).sum().backward())
    (w * 2.0).sum().backward()
    for _ in range(4):
        v = gp.ones(3, requires_grad=True)
        z = (w.grad * v).sum()
        step(gp.ones(3))
        with pytest.raises(MutationError):
            z.backward()


@pytest.mark.parametrize("kind", [gp.optim.SGD, gp.optim.Adam, gp.optim.AdamW])
@pytest.mark.parametrize("eager", ["never", "between", "every other"])
def test_steps_of_one_optimizer_on_parts_of_a_model(place, kind, eager):
    def run(wrap):
        shared, *heads = (nn.Linear(4, 4, generator=gp.Generator("cpu", i)).to(place) for i in range(3))
        optimizer = kind([p for layer in (shared, *heads) for p in layer.parameters()], lr=0.1)

        def step_of(head):
            def step(x):
                optimizer.zero_grad()
                (head(shared(x)) ** 2.0).mean().backward()
                optimizer.step()

            return step

        steps = [step_of(head) for head in heads]
        captured = [wrap(step) for step in steps]
        for i in range(14):
            usual = (eager == "between" and i == 6) or (eager == "every other" and i % 2)
            (steps if usual else captured)[i % 2 if eager != "between" else i == 6](
                gp.ones(3, 4, device=place) * (0.1 * i)
            )
        return [p.numpy().tobytes() for layer in (shared, *heads) for p in layer.parameters()]

    assert run(lambda f: f) == run(gp.capture)


@pytest.mark.parametrize("make", [nn.Parameter, lambda a: gp.asarray(a).requires_grad_()], ids=["parameter", "tensor"])
def test_gradients_pass_from_one_captured_function_to_another(place, make):
    def run(wrap):
        w = make(gp.ones(3, device=place).data)
        optimizer = gp.optim.SGD([w], lr=0.1)

        def gradient(x):
            w.grad = None
            (w * w * x).sum().backward()

        gradient, update, seen = wrap(gradient), wrap(optimizer.step), []
        more = wrap(lambda x: (w * x).sum().backward())
        for i in range(8):
            gradient(gp.ones(3, device=place) * (i + 1))
            if i > 3:
                more(gp.ones(3, device=place))
            update()
            seen += [w.grad.numpy().tobytes(), w.numpy().tobytes()]
        return seen

    assert run(lambda f: f) == run(gp.capture)


@pytest.mark.parametrize("make", [nn.Parameter, lambda a: gp.asarray(a).requires_grad_()], ids=["parameter", "tensor"])
def test_accumulation_with_a_shorter_last_group(place, make):
    def run(wrap):
        w = make(gp.ones(3, device=place).data)
        optimizer = gp.optim.SGD([w], lr=0.1)
        add, seen = wrap(lambda x: (w * w * x).sum().backward()), []
        for _ in range(4):
            for i in range(5):
                add(gp.ones(2, 3, device=place) * (i + 1))
                if i % 2 == 1 or i == 4:
                    optimizer.step()
                    optimizer.zero_grad()
                    seen.append(w.numpy().tobytes())
        return seen

    assert run(lambda f: f) == run(gp.capture)


def test_a_refusal_takes_dates_back():
    w = nn.Parameter(np.ones(3, np.float32))
    optimizer = gp.optim.SGD([w], lr=0.1)
    total = gp.zeros(3)

    def step(x):
        (w * x).sum().backward()
        optimizer.step()
        with gp.no_grad():
            total.add_(x)
        return float(x.sum())

    squares, sums = (w * w).sum(), (total * w).sum()
    with pytest.raises(CaptureError):
        gp.capture(step, warmup=0)(gp.ones(3))
    squares.backward(), sums.backward()
    assert w.grad.numpy().tolist() == [2.0, 2.0, 2.0]


def test_gradients_without_a_home_are_good_until_the_next_call():
    w = gp.ones(3, requires_grad=True)

    def step(x):
        w.grad = None
        (w * x).sum().backward()

    captured = gp.capture(step)
    for i in range(4):
        captured(gp.ones(3) * i)
        assert w.grad.numpy().tolist() == [i, i, i]
    first = w.grad
    captured(gp.ones(3) * 5)
    with pytest.raises(CaptureError, match=r"\.clone\(\)"):
        first.numpy()
    (w * 1.0).sum().backward()
    assert w.grad.numpy().tolist() == [6.0, 6.0, 6.0]
    captured(gp.ones(3))
    assert w.grad.numpy().tolist() == [1.0, 1.0, 1.0]
