"""Muon: momentum whose step is orthogonalized (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/)."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from .checks import check_real
from .runtime import pick_precision

# Of s -> a s + b s³ + c s⁵, which takes singular values from 0 to 1 near 1 (Jordan et al.).
COEFFICIENTS = 3.4445, -4.7750, 2.0315
ITERATIONS = 3


def orthogonalize(matrix: Tensor) -> Tensor:
    """Take the singular values of a matrix near 1 and leave its singular vectors: (rows, columns), the same dtype.

    The singular values, divided by the root of the sum of their squares, go three times through the quintic of
    Newton and Schulz above; products run in bfloat16 where the device computes in it, else in float32.
    """
    a, b, c = COEFFICIENTS
    fast = pick_precision("auto", matrix.device) == torch.bfloat16
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / x.norm().clamp_min(1e-7)).to(torch.bfloat16 if fast else torch.float32)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


class Muon(Optimizer):
    """SGD with Nesterov's momentum, whose steps of convolutions are orthogonalized.

    A convolution's weight (out, in, h, w) is taken as a matrix (out, in h w), and its Frobenius norm is kept at
    sqrt(out), so that `lr` is the share of it that a step changes; weight decay has no part in it. Only a weight
    whose length does not matter, since a norm follows, belongs here. What does not, as norms, biases and the
    classifier, goes into groups with `"orthogonal": False`, which take SGD's steps at a rate and a momentum of
    their own. `torch.optim.Muon` takes matrices only, and from torch 2.9 on.

    Args:
        params: parameters or groups of them, as for any optimizer.
        lr: learning rate; 0.08 at batch size 256 suits convolutions.
        momentum: from 0 to below 1.
        weight_decay: of SGD's steps, added to the gradient.

    Raises:
        ValueError: a number is out of range, or a parameter of an orthogonal group has less than two dimensions.
    """

    def __init__(self, params, lr: float = 0.08, momentum: float = 0.6, weight_decay: float = 0.0) -> None:
        check_real("lr", lr, 0)
        check_real("momentum", momentum, 0, 1)
        check_real("weight_decay", weight_decay, 0)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonal": True}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["orthogonal"] and parameter.ndim < 2:
                    raise ValueError(
                        f"a parameter {tuple(parameter.shape)} is no matrix; put norms and biases into a group with "
                        '"orthogonal": False'
                    )

    @torch.no_grad()
    def step(self, closure=None):
        """Make one step; a closure, as other optimizers take, computes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if not group["orthogonal"]:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                change = gradient.add(buffer, alpha=group["momentum"])
                if group["orthogonal"]:
                    rows = len(parameter)
                    parameter.mul_(rows**0.5 / parameter.norm().clamp_min(1e-7))
                    change = orthogonalize(change.flatten(1)).view_as(change)
                    change = change * max(1.0, rows / change[0].numel()) ** 0.5
                parameter.sub_(group["lr"] * change)
        return loss
