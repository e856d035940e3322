"""Convolutions whose filters have mean 0."""

from torch import Tensor, nn
from torch.nn.utils import parametrize


class Centered(nn.Module):
    """A parametrization that subtracts its mean from each filter of a weight (out, in, h, w)."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean(dim=(1, 2, 3), keepdim=True)


def center_filters(model: nn.Module) -> nn.Module:
    """Keep the mean of each filter of a model's convolutions at 0 while it trains, and return the model.

    A filter of mean 0 is blind to what all its inputs have in common, which behind a ReLU is most of them; nothing is
    scaled, and no activation is touched. For SGD it is the same as to center the filters once and then the gradient in
    every step (Yong et al., 2020, https://arxiv.org/abs/2004.01461). Build the optimizer after it; the frozen layers
    stay as they are. The weights of such a model load only into one that was centered too.

    Raises:
        TypeError: it is no model.
        ValueError: it has no convolution to train, or its filters are centered already, or of one weight, or are made
            by its first batch.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"center_filters takes a torch.nn.Module, not {type(model).__name__}")
    trained = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.weight.requires_grad]
    if not trained:
        raise ValueError(f"{type(model).__name__} has no 2d convolution to train, and so no filters to center")
    if any(parametrize.is_parametrized(module, "weight") for module in trained):
        raise ValueError(f"the filters of this {type(model).__name__} are centered, or parametrized, already")
    if any(nn.parameter.is_lazy(module.weight) for module in trained):
        raise ValueError("a lazy convolution has its filters from the first batch; run the model on one, then center")
    if any(module.weight[0].numel() == 1 for module in trained):
        raise ValueError("a filter of one weight is 0 where its mean is; leave center_filters out, or widen the layer")
    for module in trained:
        parametrize.register_parametrization(module, "weight", Centered())
    return model
