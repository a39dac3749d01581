"""The trainer: what it reports is what it computed, and a continued training has the bits of one without interruption."""

import numpy as np

import gpuprop as gp
from gpuprop.data import DataLoader
from gpuprop.nn import functional as F
from gpuprop.train import Accuracy, Trainer


def blobs(n=90, device=None):
    """Three classes of points (n, 4) around three corners."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    points = (3 * np.eye(3, 4)[labels] + rng.standard_normal((n, 4))).astype(np.float32)
    return gp.tensor(points, device=device), gp.tensor(labels, device=device)


def trainer_of(device=None, *, dropout=0.3, lr=0.01, schedule=True, **options):
    generator = gp.Generator(7, device=device)
    gp.manual_seed(7)
    model = gp.nn.MLP([4, 16, 3], dropout=dropout, norm="batch", seed=1).to(device or "cpu")
    optimizer = gp.optim.AdamW(model.parameters(), lr=lr)
    scheduler = gp.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60) if schedule else None
    options = {"metrics": [Accuracy()], "scheduler": scheduler, "schedule_every": "step", **options}
    trainer = Trainer(model, optimizer, F.cross_entropy, generator=default_generator(device), **options)
    del generator
    return trainer


def loaders(device=None):
    data = blobs(device=device)
    return DataLoader(data, batch_size=16, shuffle=True, drop_last=True), DataLoader(data, batch_size=32)
