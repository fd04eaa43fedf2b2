import torch
from torch import nn

from train.tasks.ema import EMA


def test_average_by_hand() -> None:
    network = nn.BatchNorm1d(1)
    ema = EMA(network, decay=0.9)
    with torch.no_grad():
        network.weight.fill_(3.0)  # starts at 1
        network.running_mean.fill_(10.0)  # type: ignore[union-attr]  # a buffer, starts at 0
        network.num_batches_tracked.fill_(7)  # type: ignore[union-attr]  # an integer buffer
    ema.update(network)
    assert torch.allclose(ema.average.weight, torch.tensor([0.9 * 1 + 0.1 * 3]))
    assert torch.allclose(ema.average.running_mean, torch.tensor([1.0]))
    assert int(ema.average.num_batches_tracked) == 7
    ema.update(network)
    assert torch.allclose(ema.average.weight, torch.tensor([0.9 * 1.2 + 0.3]))


def test_average_is_never_trained_and_stays_in_eval_mode() -> None:
    owner = nn.Module()
    owner.ema = EMA(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), decay=0.5)
    owner.train()
    assert not owner.ema.average.training
    assert not any(p.requires_grad for p in owner.ema.parameters())
    assert set(owner.state_dict()) == {"ema.average.0.weight", "ema.average.0.bias"}
    x = torch.rand(4, 2)
    torch.testing.assert_close(owner.ema.average(x), owner.ema.average[0](x))  # dropout does nothing
