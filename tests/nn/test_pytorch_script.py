"""An ordinary PyTorch script: it trains an MLP, and runs here with only its imports changed."""

import pytest

SCRIPT = """
torch.manual_seed(0)
n = 200
x = torch.randn(n, 2)
y = (x[:, 0] * x[:, 1] > 0).long()
train_x, train_y, test_x, test_y = x[:150], y[:150], x[150:], y[150:]


class Net(nn.Module):
    def __init__(self, hidden=16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True))
        self.head = nn.Linear(hidden, 2)

    def forward(self, x):
        return self.head(self.body(x))


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=60)
history = []
for epoch in range(60):
    model.train()
    permutation = torch.randperm(len(train_x))
    for i in range(0, len(train_x), 50):
        index = permutation[i : i + 50]
        optimizer.zero_grad()
        logits = model(train_x[index])
        loss = F.cross_entropy(logits, train_y[index])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    scheduler.step()
    history.append(loss.item())

model.eval()
with torch.no_grad():
    predictions = model(test_x).argmax(dim=1)
    accuracy = (predictions == test_y).float().mean().item()

copy = Net()
copy.load_state_dict(model.state_dict())
with torch.no_grad():
    same = bool((copy(test_x) == model(test_x)).all())
keys = list(model.state_dict().keys())
count = sum(p.numel() for p in model.parameters() if p.requires_grad)
"""

IMPORTS = {
    "gpuprop": "import gpuprop as torch\nimport gpuprop.nn as nn\nimport gpuprop.nn.functional as F\n",
    "torch": "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n",
}


@pytest.mark.parametrize("library", IMPORTS)
def test_it_trains(library):
    pytest.importorskip(library)
    names: dict = {"__name__": "script"}
    exec(IMPORTS[library] + SCRIPT, names)
    assert names["history"][-1] < 0.5 * names["history"][0]
    assert names["accuracy"] > 0.85 and names["same"]
    assert names["keys"][:2] == ["body.0.weight", "body.0.bias"] and names["keys"][-1] == "head.bias"
    assert names["count"] == 2 * 16 + 16 + 16 * 16 + 16 + 16 * 2 + 2
