"""Data sets and loaders: which samples come, in which order, and where they are."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.data import DataLoader, TensorDataset, load_digits, random_split
from gpuprop.errors import ArgumentError, OptionError, ShapeError


def numbered(n, device=None):
    x = np.arange(2.0 * n, dtype=np.float32).reshape(n, 2)
    return TensorDataset(gp.tensor(x, device=device), gp.tensor(np.arange(n), device=device))


@pytest.mark.parametrize(
    ("drop_last", "sizes"), [(False, [3, 3, 1]), (True, [3, 3])], ids=["every sample", "full batches only"]
)
def test_batches_in_order(device, drop_last, sizes):
    loader = DataLoader(numbered(7, device), batch_size=3, drop_last=drop_last)
    batches = list(loader)
    assert len(loader) == len(batches) == len(sizes)
    assert [len(y) for _, y in batches] == sizes
    assert [y for _, labels in batches for y in labels.tolist()] == list(range(sum(sizes)))
    assert all(t.device == device for batch in batches for t in batch)


def test_shuffled_batches_hold_every_sample_once_with_its_label(device):
    loader = DataLoader(numbered(7, device), batch_size=3, shuffle=True, generator=gp.Generator(device, 5))
    for _ in range(3):
        batches = list(loader)
        assert sorted(y for _, labels in batches for y in labels.tolist()) == list(range(7))
        for x, labels in batches:
            assert x.tolist() == [[2.0 * y, 2.0 * y + 1] for y in labels.tolist()]
            assert x.device == device


def orders(loader, epochs=3):
    return [[y for _, labels in loader for y in labels.tolist()] for _ in range(epochs)]


def test_order_follows_the_generator(device):
    first, again, other = (
        orders(DataLoader(numbered(50, device), 8, True, generator=gp.Generator(device, seed))) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first[0] != first[1]


def test_order_continues_from_a_saved_state(device):
    generator = gp.Generator(device, 3)
    loader = DataLoader(numbered(50, device), 8, shuffle=True, generator=generator)
    orders(loader)
    state = generator.get_state()
    expected = orders(loader)
    continued = gp.Generator(device, 9)
    continued.set_state(state)
    assert orders(DataLoader(numbered(50, device), 8, shuffle=True, generator=continued)) == expected


def test_default_generator_is_seeded_by_manual_seed():
    found = []
    for _ in range(2):
        gp.manual_seed(4)
        found.append(orders(DataLoader(numbered(20), 4, shuffle=True)))
    assert found[0] == found[1]


@pytest.mark.parametrize("shuffle", [False, True])
def test_changing_a_batch_leaves_the_data(device, shuffle):
    dataset = numbered(4, device)
    for x, _ in DataLoader(dataset, batch_size=2, shuffle=shuffle):
        x.zero_()
    assert dataset.tensors[0].tolist() == numbered(4).tensors[0].tolist()


@pytest.mark.parametrize("shuffle", [False, True])
def test_pixels_become_numbers_as_they_are_gathered(device, shuffle):
    pixels = np.arange(7 * 8, dtype=np.uint8).reshape(7, 2, 4)
    loader = DataLoader((gp.tensor(pixels), gp.arange(7)), 3, shuffle, scale=1 / 255, shift=-0.5)
    for x, labels in loader:
        assert (x.dtype, x.device, labels.dtype) == (np.float32, device, np.int64)
        expected = pixels[labels.numpy()] * np.float32(1 / 255) - np.float32(0.5)
        np.testing.assert_allclose(x.numpy(), expected, rtol=0, atol=np.finfo(np.float32).eps / 2)


def test_loader_takes_arrays():
    x, y = np.zeros((5, 2)), np.arange(5)
    assert [len(batch) for batch in DataLoader((x, y), batch_size=5)] == [2]
    (only,) = next(iter(DataLoader(y, batch_size=2)))
    assert only.tolist() == [0, 1]


def test_loader_of_nothing():
    assert list(DataLoader(numbered(0), batch_size=2, shuffle=True)) == []


def test_dataset_indexing():
    dataset = numbered(4)
    x, y = dataset[2]
    assert (x.tolist(), y.item(), len(dataset)) == ([4, 5], 2, 4)
    assert dataset.take(np.array([3, 0])).tensors[1].tolist() == [3, 0]


@pytest.mark.parametrize("lengths", [[6, 3, 1], [0.6, 0.3, 0.1]])
def test_random_split(lengths):
    parts = random_split(numbered(10), lengths, generator=gp.Generator("cpu", 0))
    assert [len(p) for p in parts] == [6, 3, 1]
    assert sorted(y for p in parts for y in p.tensors[1].tolist()) == list(range(10))


def test_random_split_gives_what_rounding_leaves_to_the_first():
    assert [len(p) for p in random_split(numbered(10), [0.33, 0.33, 0.34])] == [4, 3, 3]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TensorDataset(), ArgumentError, "at least one tensor"),
        (lambda: TensorDataset(np.zeros(3), np.zeros((4, 2))), ShapeError, r"one length, got shapes \(3,\), \(4, 2\)"),
        (lambda: TensorDataset(np.zeros(())), ShapeError, "one length"),
        (lambda: DataLoader(numbered(3), batch_size=0), OptionError, "at least 1, got 0"),
        (lambda: DataLoader(numbered(3), batch_size=2.0), OptionError, "at least 1, got 2.0"),
        (lambda: DataLoader(numbered(3), shift=1.0), OptionError, "a scale beside shift=1.0"),
        (lambda: DataLoader("digits"), ArgumentError, "got str"),
        (lambda: random_split(numbered(3), [1, 1]), ShapeError, "add up to 3"),
        (lambda: random_split(numbered(3), [0.5, 0.1]), ShapeError, "add up to 1"),
    ],
)
def test_wrong_use(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_digits():
    images, labels = load_digits()
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == ((1797, 64), np.float32, (1797,), np.int64)
    assert (images.min(), images.max()) == (0, 1)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # The first image, a zero, as the repository's file has it.
    row = [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]
    assert (images[0, :16] * 16).tolist() == row
    assert labels[:10].tolist() == list(range(10))
