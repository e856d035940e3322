import pytest
import torch
from torch import nn

from eva_utils.utils.optim import make_optimizer, param_groups


def test_norms_and_biases_do_not_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4), nn.Flatten(), nn.Linear(4, 2))
    model[3].weight.requires_grad_(False)
    decaying, others = param_groups(model, 0.1)
    assert [id(p) for p in decaying["params"]] == [id(model[0].weight)] and decaying["weight_decay"] == 0.1
    own = [model[0].bias, model[1].weight, model[1].bias, model[3].bias]
    assert [id(p) for p in others["params"]] == list(map(id, own)) and others["weight_decay"] == 0


def test_optimizers_by_name(tiny_net):
    sgd = make_optimizer("sgd", tiny_net, lr=0.2, momentum=0.8, weight_decay=0.01)
    assert type(sgd) is torch.optim.SGD and sgd.param_groups[0]["momentum"] == 0.8
    adam, adamw = (make_optimizer(name, tiny_net, lr=0.2, momentum=0.8) for name in ("adam", "adamw"))
    assert type(adam) is torch.optim.Adam and type(adamw) is torch.optim.AdamW
    assert adam.param_groups[1]["betas"] == (0.8, 0.999)
    with pytest.raises(
        ValueError, match=r"unknown optimizer 'adma': choose one of sgd, adam, adamw; did you mean 'adam'\?"
    ):
        make_optimizer("adma", tiny_net, lr=0.1)
