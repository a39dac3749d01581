"""The trainer: what it reports is what it computed, and a continued training has the bits of one never interrupted."""

import json

import numpy as np
import pytest

import gpuprop as gp
from gpuprop._random import default_generator
from gpuprop.data import DataLoader
from gpuprop.device import backend_for, require
from gpuprop.errors import ArgumentError, DivergenceError, OptionError
from gpuprop.nn import functional as F
from gpuprop.train import Accuracy, Callback, Checkpoint, EarlyStopping, EpochLog, Trainer

EPOCHS = 6


def blobs(device, n=90):
    """Three classes of points (n, 4) around three corners."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    points = (3 * np.eye(3, 4)[labels] + rng.standard_normal((n, 4))).astype(np.float32)
    return gp.tensor(points, device=device), gp.tensor(labels, device=device)


def loaders(device):
    data = blobs(device)
    return DataLoader(data, batch_size=16, shuffle=True, drop_last=True), DataLoader(data, batch_size=32)


def made(device, seed=7, lr=0.01, scheduler="cosine", **options):
    """A trainer whose every part has state: moments, schedule, running statistics, dropout, the order of samples."""
    gp.manual_seed(seed)
    model = gp.nn.MLP([4, 16, 3], dropout=0.3, norm="batch", seed=seed).to(device)
    optimizer = gp.optim.AdamW(model.parameters(), lr=lr)
    schedules = {
        "cosine": (lambda: gp.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5 * EPOCHS), "step"),
        "step": (lambda: gp.optim.lr_scheduler.StepLR(optimizer, 2), "epoch"),
        "plateau": (lambda: gp.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0), "epoch"),
    }
    make, every = schedules[scheduler]
    return Trainer(
        model,
        optimizer,
        F.cross_entropy,
        metrics=[Accuracy()],
        scheduler=make(),
        schedule_every=every,
        generator=default_generator(device),
        **options,
    )


class Rows(Callback):
    """Remembers the figures of each epoch, and does something after it."""

    def __init__(self, then=lambda trainer, row: None):
        self.rows, self.then = [], then

    def on_epoch(self, trainer, row):
        self.rows.append({k: v for k, v in row.items() if k not in ("seconds", "samples_per_second")})
        self.then(trainer, row)


def weights(trainer):
    return {name: value.numpy().tobytes() for name, value in trainer.model.state_dict().items()}


def test_it_learns_and_reports(device):
    rows = Rows()
    trainer = made(device, callbacks=[rows])
    assert trainer.fit(*loaders(device), epochs=EPOCHS)
    assert [row["epoch"] for row in rows.rows] == list(range(1, EPOCHS + 1))
    assert trainer.samples == EPOCHS * 80
    last = rows.rows[-1]
    assert last["validation_accuracy"] > 0.9 > rows.rows[0]["train_accuracy"]
    assert last["validation_loss"] < rows.rows[0]["validation_loss"] / 2
    assert rows.rows[0]["lr"] == 0.01 > last["lr"] > 0


def test_evaluation_is_over_all_samples_and_without_dropout(device):
    trainer = made(device)
    x, labels = blobs(device)
    found = trainer.evaluate(loaders(device)[1])
    with gp.no_grad():
        logits = trainer.model.eval()(x)
        expected = F.cross_entropy(logits, labels).item()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.numpy().argmax(1) == labels.numpy()).mean())


@pytest.mark.parametrize("scheduler", ["cosine", "step", "plateau"])
@pytest.mark.parametrize("stop", [1, 3])
def test_continued_from_a_file_it_has_the_same_bits(device, tmp_path, scheduler, stop):
    whole = made(device, scheduler=scheduler, callbacks=[EarlyStopping(50), full := Rows()])
    whole.fit(*loaders(device), epochs=EPOCHS)

    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    stopper = Rows(lambda trainer, row: trainer.interrupt() if row["epoch"] == stop else None)
    first = made(device, scheduler=scheduler, callbacks=[EarlyStopping(50), stopper, checkpoint])
    assert not first.fit(*loaders(device), epochs=EPOCHS)
    assert first.epoch == stop

    second = made(device, seed=99, scheduler=scheduler, callbacks=[EarlyStopping(50), rest := Rows()])
    second.load_state_dict(gp.load(checkpoint.path))
    assert second.fit(*loaders(device), epochs=EPOCHS)
    assert weights(second) == weights(whole)
    assert rest.rows == full.rows[stop:]
    assert second.samples == whole.samples


def test_early_stopping_restores_the_best(device):
    seen = {}
    rows = Rows(lambda trainer, row: seen.update({row["epoch"]: weights(trainer)}))
    trainer = made(device, lr=0.3, scheduler="step", callbacks=[stopping := EarlyStopping(2), rows])
    assert trainer.fit(*loaders(device), epochs=60)
    losses = [row["validation_loss"] for row in rows.rows]
    best = int(np.argmin(losses)) + 1
    assert stopping.best_epoch == best
    assert len(losses) == best + 2 < 60
    assert weights(trainer) == seen[best]


def test_epoch_log(tmp_path):
    trainer = made("cpu", callbacks=[EpochLog(tmp_path / "m.jsonl")])
    trainer.fit(*loaders("cpu"), epochs=2)
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "lr", "seconds"} <= rows[0].keys()


def test_training_without_validation():
    trainer = made("cpu", scheduler="plateau", callbacks=[rows := Rows()])
    assert trainer.fit(loaders("cpu")[0], epochs=1)
    assert "validation_loss" not in rows.rows[0]


def test_loss_that_is_not_finite():
    trainer = made("cpu", lr=1e30)
    with pytest.raises(DivergenceError, match=r"in epoch \d; try a learning rate below"):
        trainer.fit(*loaders("cpu"), epochs=3)


def test_arguments_in_another_order():
    model = gp.nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="a model, its optimizer and a loss, in this order, got .* and Adam"):
        Trainer(model, F.cross_entropy, gp.optim.Adam(model.parameters()))


def test_wrong_schedule():
    with pytest.raises(OptionError, match="'step' or 'epoch', got 'day'"):
        Trainer(None, None, None, schedule_every="day")


def test_nothing_is_read_before_the_epoch_is_over(monkeypatch):
    """On the guard backend, which refuses what would stop a GPU, one epoch reads its totals and nothing else."""
    backend = backend_for(require("guard"))
    read = []
    to_host = backend.to_host
    monkeypatch.setattr(backend, "to_host", lambda array: read.append(array.shape) or to_host(array))
    trainer = made("guard")
    totals = trainer._train(loaders("guard")[0])
    assert (totals.count, read) == (80, [])
    assert set(totals.read()) == {"loss", "accuracy"}
    assert read == [(), ()]


def test_captured_steps_are_those_of_the_model():
    def trained(capture):
        trainer = made("cpu")
        trainer.capture_refusal = None if capture else "not wanted"
        train, validation = loaders("cpu")
        trainer.fit(train, validation, epochs=3)
        assert (trainer.capture_refusal is None) is capture
        return b"".join(t.numpy().tobytes() for t in trainer.model.state_dict().values())

    assert trained(True) == trained(False)


def test_a_model_that_cannot_be_captured_is_trained_all_the_same():
    class Reading(gp.nn.Module):
        def __init__(self, inner):
            self.inner = inner

        def forward(self, x):
            y = self.inner(x)
            return y * 2.0 if float(y.sum()) > 1e9 else y

    def trained(wrap):
        trainer = made("cpu")
        trainer.model = wrap(trainer.model)
        trainer.fit(*loaders("cpu"), epochs=2)
        return trainer, b"".join(t.numpy().tobytes() for t in trainer.model.state_dict().values())

    trainer, weights = trained(Reading)
    assert "a read of a value on the host" in trainer.capture_refusal
    assert weights == trained(lambda model: model)[1]
