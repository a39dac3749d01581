"""Tensor: making, asking, converting, copying, changing."""

import copy
import pickle

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.errors import ArgumentError, BoundsError, DeviceError, DtypeError, GraphError, ShapeError

rng = np.random.default_rng(11)


# --- Making ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, dtype",
    [
        (1.5, np.float32),
        ([1.0, 2.0], np.float32),
        ([[1, 2], [3, 4]], np.int64),
        (True, np.bool_),
        ([True, False], np.bool_),
        (np.ones(2), np.float64),
        (np.ones(2, np.float16), np.float16),
        (np.float64(2.0), np.float64),
        (np.arange(3, dtype=np.int32), np.int32),
    ],
)
def test_dtypes_at_the_border(data, dtype):
    assert gp.tensor(data).dtype == dtype


def test_tensor_copies_and_asarray_shares():
    a = np.ones(3)
    copied, shared = gp.tensor(a, device="cpu"), gp.asarray(a, device="cpu")
    a[0] = 7
    assert copied.numpy()[0] == 1 and shared.numpy()[0] == 7
    assert gp.from_numpy(a).data is a and gp.asarray(shared) is shared


def test_lists_of_tensors_and_other_protocols():
    np.testing.assert_array_equal(gp.tensor([gp.tensor(1.0), gp.tensor(2.0)]).numpy(), [1.0, 2.0])

    class Exporter:
        def __array__(self, dtype=None, copy=None):
            return np.arange(3.0)

    assert gp.tensor(Exporter()).dtype == np.float64


@pytest.mark.parametrize("data", ["text", ["a"], 1 + 2j, np.array([1j]), object(), np.array([None])])
def test_what_is_no_number_is_refused(data):
    with pytest.raises(DtypeError, match=r"tensor: expected real numbers"):
        gp.tensor(data)


@pytest.mark.parametrize("data", [[1.0, 2.0], 3.0, gp.tensor(1.0, device="cpu")])
def test_the_class_wraps_arrays_alone(data):
    with pytest.raises(ArgumentError, match=r"Tensor: expected an array, got (list|float|Tensor); gp.tensor"):
        gp.Tensor(data)


def test_ragged_lists_are_refused():
    with pytest.raises(ShapeError, match="one shape"):
        gp.tensor([[1.0], [1.0, 2.0]])


def test_creation_functions():
    assert gp.zeros(2, 3).shape == gp.ones((2, 3)).shape == gp.empty([2, 3]).shape == (2, 3)
    assert gp.full((2, 3), 0.5).dtype == np.float32 and gp.full((2,), 3).dtype == np.int64
    assert gp.arange(3).dtype == np.int64 and gp.arange(0.0, 1.0, 0.25).dtype == np.float32
    np.testing.assert_allclose(gp.linspace(0, 1, 5).numpy(), [0, 0.25, 0.5, 0.75, 1])
    assert gp.eye(2, 3).shape == (2, 3) and gp.zeros(()).shape == ()
    like = gp.zeros_like(gp.ones(2, dtype=gp.float64))
    assert like.dtype == np.float64 and like.shape == (2,)
    assert gp.full_like(like, 2.0).numpy()[0] == 2
    assert gp.rand(2, 3).shape == gp.randn((2, 3)).shape == gp.randint(0, 5, (2, 3)).shape == (2, 3)
    assert gp.zeros(2, requires_grad=True).requires_grad
    assert gp.eye(2).dtype == gp.linspace(0, 1, 3).dtype == np.float32


def test_shapes_and_values_of_creation_functions():
    assert gp.zeros(shape=()).shape == () and gp.ones(size=(2, 3)).shape == gp.zeros(gp.tensor([2, 3])).shape == (2, 3)
    assert gp.full((2,), gp.tensor(0.5)).dtype == gp.full((2,), [1.0, 2.0]).dtype == np.float32
    assert gp.full(size=(2,), fill_value=3).dtype == np.int64 and gp.full(2, 3, 0.5).shape == (2, 3)
    np.testing.assert_array_equal(gp.arange(start=1, stop=6, step=2).numpy(), [1, 3, 5])


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: gp.zeros(2.5), ArgumentError, "zeros: expected a shape of integers"),
        (lambda: gp.ones("ab"), ArgumentError, "ones: expected a shape of integers"),
        (lambda: gp.empty(2, -1), ShapeError, "empty: expected a shape .* not negative"),
        (lambda: gp.full((2,)), ArgumentError, "full: expected a shape and a value"),
        (lambda: gp.full((2,), 300, dtype=gp.uint8), ShapeError, "full: .*300.*uint8"),
        (lambda: gp.full((2, 3), np.ones(4)), ShapeError, r"full: .*\(2, ?3\)"),
        (lambda: gp.arange(1, 5, 0), ShapeError, "arange: .*zero"),
        (lambda: gp.eye(-1), ShapeError, "eye: negative"),
        (lambda: gp.linspace(0, 1, 2.5), DtypeError, "linspace: .*float"),
        (lambda: gp.tensor([300], dtype=gp.uint8), ShapeError, "tensor: .*300"),
        (lambda: gp.tensor(np.ones(2), dtype=complex), DtypeError, "tensor: expected a dtype .*complex"),
        (lambda: gp.tensor([1.0], dtype="bogus"), DtypeError, "tensor: expected a dtype .*'bogus'"),
        (lambda: gp.zeros(2, dtype="bogus"), DtypeError, "zeros: expected a dtype"),
        (lambda: gp.ones(2).to("bogus"), DtypeError, "to: expected a dtype .*'bogus'"),
        (lambda: gp.ones(2).to(1), DtypeError, "to: expected a dtype .*1"),
        (lambda: gp.ones(2).astype(complex), DtypeError, "astype: expected a dtype .*complex"),
        (lambda: gp.set_default_dtype("bogus"), DtypeError, "set_default_dtype: expected a dtype"),
        (lambda: gp.set_default_dtype(None), DtypeError, "set_default_dtype: expected a dtype"),
    ],
)
def test_wrong_shapes_values_and_dtypes_name_the_function(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_masks_are_refused_and_byte_orders_made_native():
    masked = np.ma.masked_array([1.0, 2.0], [True, False])
    for take in (gp.tensor, gp.asarray, gp.numpy.exp):
        with pytest.raises(DtypeError, match="without a mask"):
            take(masked)
    assert gp.tensor(np.array([1, 2], ">f4")).dtype.isnative and gp.asarray(np.array([1, 2], ">i4")).tolist() == [1, 2]


def test_dtypes_have_the_names_that_users_of_pytorch_know():
    names = {"half": gp.float16, "float": gp.float32, "double": gp.float64, "int": gp.int32, "long": gp.int64}
    for name, dtype in {**names, "bool": gp.bool_}.items():
        assert gp.ones(1, dtype=getattr(gp, name)).dtype == dtype == getattr(gp.ones(1), name)().dtype


def test_the_default_dtype():
    try:
        gp.set_default_dtype(gp.float64)
        assert gp.tensor(1.0).dtype == gp.zeros(1).dtype == gp.rand(1).dtype == np.float64
    finally:
        gp.set_default_dtype(gp.float32)
    with pytest.raises(DtypeError, match="floating"):
        gp.set_default_dtype(gp.int64)


# --- Promotion ------------------------------------------------------------------------------------------------------


def test_python_and_numpy_scalars_are_weak_and_arrays_promote():
    x = gp.ones(2)
    for scalar in (2, 2.0, True, np.float64(2), np.int64(2)):
        assert (x * scalar).dtype == (scalar * x).dtype == np.float32
    assert (x * np.ones(2)).dtype == (np.ones(2) * x).dtype == np.float64
    assert isinstance(np.ones(2) * x, gp.Tensor)
    assert (gp.arange(2) + 1).dtype == np.int64


def test_zero_dimensional_results_stay_arrays():
    x = gp.tensor(2.0, device="cpu")
    for y in (x * x, x.sum(), gp.numpy.exp(x), x + 1):
        assert isinstance(y.data, np.ndarray) and y.shape == ()


# --- Asking ---------------------------------------------------------------------------------------------------------


def test_properties():
    x = gp.tensor(rng.standard_normal((2, 3)))
    assert (x.shape, x.ndim, x.size, len(x)) == ((2, 3), 2, 6, 2)
    assert x.T.shape == (3, 2) and x.is_leaf and not x.requires_grad and x.grad is None
    assert x.dim() == 2 and x.numel() == 6
    assert gp.tensor(3).item() == 3 and gp.tensor([[1, 2]]).tolist() == [[1, 2]]
    assert (
        float(gp.tensor([2.5])) == 2.5 and int(gp.tensor(3)) == 3 and bool(gp.tensor(1)) and [1, 2][gp.tensor(1)] == 2
    )
    assert f"{gp.tensor(1.25):.1f}" == "1.2" and 2.0 in gp.tensor([1.0, 2.0])
    assert [t.item() for t in gp.tensor([1, 2])] == [1, 2]


def test_repr_shows_shape_dtype_device_and_op():
    x = gp.tensor([1.0, 2.0], requires_grad=True, device="cpu")
    assert repr(x) == "tensor([1., 2.], shape=(2,), dtype=float32, device='cpu', requires_grad=True)"
    assert "op=multiply" in repr(x * 2) and "device='cpu'" in repr(x * 2)


def test_a_format_of_numbers_expects_one_element():
    assert f"{gp.tensor([1.0]):.2f}" == "1.00" and f"{gp.tensor([1, 2]):>80}".endswith("'cpu')")
    with pytest.raises(ShapeError, match=r"format: expected one element for '\.2f', got shape \(2,\)"):
        f"{gp.tensor([1.0, 2.0]):.2f}"


@pytest.mark.parametrize("ask", [bool, float, int, lambda t: t.item()])
def test_one_element_is_expected(ask):
    with pytest.raises(ShapeError, match=r"one element, got shape \(2,\)"):
        ask(gp.ones(2))


# --- Converting -----------------------------------------------------------------------------------------------------


def test_to_and_its_short_forms(device):
    x = gp.tensor([1.0, 2.0], device=device, requires_grad=True)
    assert x.to(device) is x and x.to(gp.float32) is x
    assert x.double().dtype == np.float64 and x.long().dtype == np.int64 and x.half().dtype == np.float16
    assert x.cpu().device == "cpu" and x.to("cpu", gp.float64).dtype == np.float64
    (x.cpu().double() * 3.0).sum().backward()  # a copy between devices is differentiable
    np.testing.assert_array_equal(x.grad.numpy(), [3.0, 3.0])
    assert x.grad.device == x.device and x.grad.dtype == np.float32
    other = gp.ones(1, dtype=gp.float64, device="cpu")
    assert x.to(other).dtype == np.float64 and x.to(other).device == "cpu"


def test_devices_that_are_not_there_are_errors():
    if not gp.is_available():
        with pytest.raises(DeviceError, match="cannot be had"):
            gp.ones(2, device="cpu").cuda()
    with pytest.raises(DeviceError, match="'cpu', 'cuda'"):
        gp.ones(2, device="tpu")
    with pytest.raises(DeviceError, match="'cpu', 'cuda'"):
        gp.ones(2, device=gp.Device("tpu"))


def test_protocols_refuse_what_the_tape_would_not_see():
    x = gp.tensor([1.0, 2.0], device="cpu")
    np.testing.assert_array_equal(np.asarray(x), [1, 2])
    np.testing.assert_array_equal(np.from_dlpack(x), [1, 2])
    x.requires_grad_()
    for leave in (np.asarray, np.from_dlpack):
        with pytest.raises(GraphError, match=r"\.detach\(\)"):
            leave(x)
    np.testing.assert_array_equal(x.numpy(), [1, 2])
    assert not hasattr(x, "__cuda_array_interface__")


# --- Copying --------------------------------------------------------------------------------------------------------


def test_detach_shares_and_clone_copies():
    x = gp.tensor([1.0, 2.0], requires_grad=True)
    assert x.detach().data is x.data and not x.detach().requires_grad
    y = x.clone()
    assert y.data is not x.data and y.requires_grad
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [1, 1])
    t = gp.tensor(rng.standard_normal((2, 3)), device="cpu").T
    assert not t.data.flags.c_contiguous and t.contiguous().data.flags.c_contiguous


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_leaves_can_be_copied_and_pickled(duplicate):
    x = gp.tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    y = duplicate(x)
    assert y.requires_grad and y.data is not x.data and y.device == x.device
    np.testing.assert_array_equal(y.grad.numpy(), x.grad.numpy())
    y.grad.zero_()
    assert x.grad.numpy().any()
    with pytest.raises(GraphError, match="leaf"):
        duplicate(x * 2)


# --- Changing -------------------------------------------------------------------------------------------------------


def test_in_place_operators(device):
    x = gp.tensor([1.0, 2.0, 3.0], device=device)
    same = x.data
    x += 1
    x *= gp.tensor([1.0, 2.0, 3.0], device=device)
    x -= 2.0
    x /= 2.0
    x **= 2
    assert x.data is same
    np.testing.assert_allclose(x.numpy(), [0.0, 4.0, 25.0])
    x.zero_()
    x[1] = 5.0
    x[gp.tensor([0, 2], device=device)] = gp.tensor([1.0, 2.0], device=device)
    np.testing.assert_array_equal(x.numpy(), [1, 5, 2])
    x[x > 1.5] = 0.0
    np.testing.assert_array_equal(x.numpy(), [1, 0, 0])
    x.fill_(4.0)
    x.copy_([1, 2, 3])
    np.testing.assert_array_equal(x.numpy(), [1, 2, 3])
    assert x.dtype == np.float32


def test_every_operator_of_numpy_works_in_place(device):
    x = gp.tensor([7, 9, 12], device=device)
    view = x[:2]
    view //= 2
    view %= 3
    x |= 4
    x &= 6
    x ^= 1
    np.testing.assert_array_equal(x.numpy(), [5, 5, 5])


def test_wrong_changes():
    x = gp.zeros(3, device="cpu")
    with pytest.raises(ShapeError, match="copy_"):
        x.copy_(np.ones(4))
    with pytest.raises(BoundsError, match="t\\[i\\] = v"):
        x[5] = 1.0
    with pytest.raises(ShapeError, match="t\\[i\\] = v"):
        x[:2] = np.ones(3)
    with pytest.raises(DtypeError, match="add in place"):
        y = gp.arange(3, device="cpu")
        y += 0.5
    with pytest.raises(DtypeError, match="t\\[i\\] = v: expected a tensor, an array or a number, got None"):
        x[0] = None
    with pytest.raises(DtypeError, match="t\\[i\\] = v: .*float32"):
        x[1.5:] = 1.0
    for value in ("text", None, [1.0, 2.0], np.ones(3)):
        with pytest.raises((DtypeError, ShapeError), match="fill_: "):
            x.fill_(value)
    with pytest.raises(ShapeError, match="add in place: .*300.*uint8"):
        z = gp.zeros(3, dtype=gp.uint8, device="cpu")
        z += 300


def test_methods_take_axis_and_dim_alike():
    x = gp.tensor(rng.standard_normal((2, 3)))
    for y in (x.sum(1), x.sum(axis=1), x.sum(dim=1), x.sum(-1)):
        np.testing.assert_allclose(y.numpy(), x.numpy().sum(1))
    assert x.mean(dim=0, keepdim=True).shape == x.mean(axis=0, keepdims=True).shape == (1, 3)
    assert x.max(axis=1).shape == (2,) and x.min(1).shape == (2,)  # values, as in NumPy
    assert x.transpose().shape == x.transpose(1, 0).shape == (3, 2)
    assert x.reshape(3, 2).shape == x.reshape((3, 2)).shape == x.view(-1, 2).shape == (3, 2)


@pytest.mark.parametrize(
    "function",
    [
        *(np.sum, np.mean, np.prod, np.max, np.min, np.std, np.var, np.cumsum, np.cumprod, np.transpose, np.squeeze),
        lambda x: np.sum(x, axis=0, keepdims=True),
        lambda x: np.clip(x, 0, 1),
        lambda x: np.reshape(x, (3, 2)),
        lambda x: np.take(x, [0, 2]),
        lambda x: np.repeat(x, 2, axis=0),
        lambda x: np.round(x, 1),
    ],
)
def test_numpy_functions_that_call_methods_are_recorded(function):
    x = gp.tensor(rng.standard_normal((2, 3)), requires_grad=True, device="cpu")
    y = function(x)
    assert isinstance(y, gp.Tensor) and y.requires_grad
    np.testing.assert_allclose(y.numpy(), function(x.numpy()))


@pytest.mark.parametrize(
    "function", [np.sin, np.sort, np.dot, lambda x: np.concatenate([x, x]), lambda x: np.add(1, x)]
)
def test_numpy_functions_that_the_tape_would_not_see_are_refused(function):
    x = gp.tensor(rng.standard_normal(3), requires_grad=True, device="cpu")
    with pytest.raises((GraphError, TypeError)):
        function(*[x] * (2 if function is np.dot else 1))


def test_short_methods_of_pytorch():
    x = gp.tensor(rng.standard_normal((2, 3)))
    np.testing.assert_array_equal(x.t().numpy(), x.numpy().T)
    assert x.view_as(gp.zeros(3, 2)).shape == (3, 2) and x.tile((1, 2)).shape == (2, 6) and x[0].diag().shape == (3, 3)
    with pytest.raises(ShapeError, match=r"t: .*\(1, 2, 3\)"):
        x[None].t()


def test_what_a_leaf_holds_stays_floating():
    x = gp.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(DtypeError, match="data: expected a floating dtype"):
        x.data = np.zeros(2, int)
    with pytest.raises(DtypeError, match="grad: expected a floating dtype"):
        x.grad = gp.tensor([1, 2])
