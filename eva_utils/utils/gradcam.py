"""Grad-CAM (Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import check_logits
from .cam_layer import check_map, deepest_layer
from .checks import check_made
from .compiling import unwrap
from .failures import failure_explained
from .kept import keep_attributes, keep_buffers, keep_modes, keep_rng
from .names import unknown_name

Reshape = Callable[[Tensor], Tensor]


class Explanation(NamedTuple):
    """What `GradCAM.explain` returns, on the CPU.

    Attributes:
        maps: {layer: float32 (N, H, W) in [0, 1]}, at the images' size.
        sizes: {layer: (h, w)}, height and width of the layer's map before it was enlarged.
        probabilities: float32 (N, C), softmax of the logits.
    """

    maps: dict[str, Tensor]
    sizes: dict[str, tuple[int, int]]
    probabilities: Tensor


class GradCAM:
    """Maps of where a class is seen, at one or several layers.

    For the activations A (C, h, w) of a layer and the logit y of a class, the map is
    relu(sum over k of a_k A_k) with a_k the mean of dy / dA_k over the pixels. It is upsampled bilinearly
    to the image and scaled to [0, 1] for each image; a map that is nowhere positive, or the same
    everywhere, is all zeros. Of a layer that runs several times the last run counts.

    Calling it runs the model once forward, after once on one image if no layer is named, and once backward, from
    the logits to the earliest chosen layer and no further, in evaluation mode, with autocast off. Modes, buffers,
    gradients, `requires_grad`, hooks and random generators are put back, also after an error.

    Args:
        model: a classifier that returns logits (N, C); also one that is compiled or wrapped for several
            processes, whose inner model is then run.
        layers: names as in `model.named_modules()`; None is the one the model declares as `cam_layer`, else the
            deepest of those that hold a convolution with a map of at least 5x5.
        reshape: turns a layer's output into a map (N, C, h, w), as a transformer's tokens need; None is the
            model's own method `cam_reshape`, if it has one, for outputs (N, T, C).

    Raises:
        TypeError: the model is none.
        ValueError: a layer does not exist (the nearest is named), or the model cannot be differentiated.

    Example:
        maps = GradCAM(model, ["layer3", "layer4"])(images)["layer4"]  # (N, H, W)
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str] | None = None, *, reshape: Reshape | None = None
    ) -> None:
        check_made(model)
        self.model = unwrap(model)
        if layers is None and reshape is None:
            layers = getattr(self.model, "cam_layer", None)
        self.reshape = reshape
        several = isinstance(layers, Iterable) and not isinstance(layers, str | nn.Module)
        names: list | None = None if layers is None else list(layers) if several else [layers]
        if any(not isinstance(name, str) for name in names or []):
            raise ValueError(
                "layers are names as in model.named_modules(), such as ['layer3', 'layer4'], not the modules or their "
                f"numbers, got {names!r:.60}"
            )
        self.layers = names
        if reshape is not None and not self.layers:
            raise ValueError(
                "name the layer whose output reshape= turns into a map, as layers=['encoder.layers.5.ln_1']"
            )
        self._modules = dict(self.model.named_modules())
        for name in self.layers or []:
            if not name or name not in self._modules:
                known = [known for known in self._modules if known]
                raise unknown_name("layer", name, sorted(known, key=lambda layer: layer.count(".")))

    def __enter__(self) -> "GradCAM":
        return self

    def __exit__(self, *_: object) -> None:
        """For `with GradCAM(...) as cam`, as other packages need it; here hooks live only inside a call."""

    def __call__(self, images: Tensor, classes: int | Sequence[int] | Tensor | None = None) -> dict[str, Tensor]:
        """Return a map for each image at each layer: {layer: float32 (N, H, W) in [0, 1], on the CPU}.

        Args:
            images: float32 (N, 3, H, W), normalized as in training, on any device.
            classes: the class to explain, one for all or one an image; None is the predicted class.

        Raises:
            ValueError: the images are no batch, a class does not exist, a layer does not run, has no map
                or does not reach the logits.
        """
        return self.explain(images, classes).maps

    def explain(self, images: Tensor, classes: int | Sequence[int] | Tensor | None = None) -> Explanation:
        """Return the maps with their sizes before they were enlarged, and the model's probabilities.

        Args and errors are those of a call.
        """
        with self._quiet(images) as own:
            raw, logits = self._maps(own, classes, self.layers or [deepest_layer(self.model, own, self._shape)])
        maps = {}
        for name, map_ in raw.items():
            # Scaled before as well, so that rounding in the upsampling of a flat map is not stretched into a pattern.
            sized = F.interpolate(_scale(map_)[:, None], images.shape[-2:], mode="bilinear")[:, 0]
            maps[name] = _scale(sized).cpu()
        sizes = {name: (map_.shape[-2], map_.shape[-1]) for name, map_ in raw.items()}
        return Explanation(maps, sizes, logits.float().softmax(dim=1).cpu())

    def sizes(self, images: Tensor) -> dict[str, tuple[int, int]]:
        """Return height and width of each layer's map before it is enlarged, from one image of the batch.

        Args:
            images: float32 (N, 3, H, W), as for a call.

        Raises:
            ValueError: those of a call.
        """
        is_batch = isinstance(images, Tensor) and images.ndim == 4
        return self.explain(images[:1] if is_batch else images).sizes

    @contextmanager
    def _quiet(self, images: Tensor) -> Iterator[Tensor]:
        """Yield a copy of the images on the model's device and in its dtype; while the context lasts the model is in
        evaluation mode and autocast off, and attributes, buffers and random generators are put back at its end.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or not len(images):
            found = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"images are float32 (N, C, H, W), got {found}; add the batch axis with images[None]")
        parameter = next(self.model.parameters(), None)
        device = images.device if parameter is None else parameter.device
        dtype = torch.float32 if parameter is None else parameter.dtype
        with ExitStack() as stack:
            stack.enter_context(keep_attributes(self.model))
            stack.enter_context(keep_modes(self.model))  # a scripted module's is no attribute
            stack.enter_context(keep_buffers(self.model))
            for module in self.model.modules():
                if getattr(module, "_compiled_call_impl", None) is not None:  # hooks do not fire in compiled code
                    module._compiled_call_impl = None
            self.model.eval()
            stack.enter_context(keep_rng())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.autocast(device.type, enabled=False))
            stack.enter_context(torch.no_grad())
            yield images.detach().clone().to(device, dtype)

    def _maps(self, images: Tensor, classes: Any, layers: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the unscaled maps (N, h, w) of the layers, and the logits."""
        outputs: dict[str, Tensor] = {}

        def keep(name: str):
            def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor:
                if not isinstance(output, Tensor):
                    raise ValueError(f"layer {name!r} returns {type(output).__name__}, which is no map; choose another")
                # The graph begins here. What follows gets a clone, so that it may work in place.
                outputs[name] = output if output.requires_grad else output.detach().requires_grad_()
                torch.set_grad_enabled(True)
                return outputs[name].clone()

            return hook

        with torch.no_grad(), ExitStack() as stack:
            for name in layers:
                stack.callback(self._modules[name].register_forward_hook(keep(name)).remove)
            with failure_explained(self.model, images):
                logits = self.model(images)
            self._check_run(layers, outputs, logits, images)
            chosen = _chosen_classes(classes, logits)
            with torch.enable_grad():
                score = logits.gather(1, chosen[:, None]).sum()
            if not score.requires_grad:
                raise ValueError(_unreached(layers[0]))
            gradients = torch.autograd.grad(score, [outputs[name] for name in layers], allow_unused=True)
        maps = {}
        for name, gradient in zip(layers, gradients, strict=True):
            if gradient is None:
                raise ValueError(_unreached(name))
            maps[name] = _weighted(*(self._shape(part.detach()) for part in (outputs[name], gradient)))
        return maps, logits.detach()

    def _shape(self, output: Tensor) -> Tensor:
        own = getattr(self.model, "cam_reshape", None)
        if self.reshape is None and own is not None and output.ndim == 3:
            return own(output)
        return output if self.reshape is None else self.reshape(output)

    def _check_run(self, layers: list[str], outputs: dict[str, Tensor], logits: Any, images: Tensor) -> None:
        idle = [name for name in layers if name not in outputs]
        if idle:
            raise ValueError(f"layer {idle[0]!r} exists and never runs in forward(); choose another")
        for name in layers:
            check_map(tuple(self._shape(outputs[name]).shape), name, images, reshaped=self.reshape is not None)
        check_logits(logits, images)
        if not logits.isfinite().all():
            raise ValueError("the model returned logits that are NaN or infinite; look at its weights and the images")


def _unreached(name: str) -> str:
    return (
        f"layer {name!r} does not reach the logits by a path with gradients; choose another, or see whether "
        "forward() uses no_grad() or detach() after it"
    )


def _chosen_classes(classes: Any, logits: Tensor) -> Tensor:
    """Return the class to explain for each image, int64 (N,)."""
    count, known = logits.shape
    if classes is None:
        return logits.argmax(dim=1)
    try:
        chosen = torch.as_tensor(classes, device=logits.device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"classes is None, a class number, or one for each image, not {classes!r}") from None
    chosen = chosen.expand(count) if chosen.ndim == 0 else chosen
    if chosen.shape != (count,) or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise ValueError(f"classes is None, a class, or one for each of the {count} images, not {classes!r}")
    if int(chosen.min()) < 0 or int(chosen.max()) >= known:
        raise ValueError(f"classes are from 0 to {known - 1}, got {sorted(set(chosen.tolist()))}")
    return chosen.long()


def _weighted(activation: Tensor, gradient: Tensor) -> Tensor:
    """Return the unscaled maps (N, h, w); one that rounding alone could have made, of equal values or of weights that
    are 0 (those of a convolution whose channels are normalized one by one), is all zeros.
    """
    exact = torch.promote_types(activation.dtype, torch.float32)
    activation, gradient = activation.to(exact), gradient.to(exact)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    maps = (weights * activation).sum(dim=1).relu()
    largest = (gradient.abs().mean(dim=(2, 3), keepdim=True) * activation.abs()).sum(dim=1).amax(dim=(1, 2))
    spread = maps.amax(dim=(1, 2)) - maps.amin(dim=(1, 2))
    # Rounding made up to 5 eps of it in maps of 32x32 and 82 in 128x128, where maps of networks have 50,000 or more.
    is_rounding = spread <= 256 * torch.finfo(exact).eps * largest
    return torch.where(is_rounding[:, None, None], 0, maps).float()


def _scale(maps: Tensor) -> Tensor:
    """Stretch each map (N, H, W) to [0, 1]; a constant one becomes 0."""
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    peak = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(peak > 0, maps / peak.clamp_min(torch.finfo(maps.dtype).tiny), 0)


def overlay(image: Tensor, map_: Tensor, strength: float = 0.5) -> Tensor:
    """Lay a map over an image in the colours of viridis, dark violet (0) to yellow (1).

    Args:
        image: (3, H, W) in [0, 1], denormalized.
        map_: (H, W) in [0, 1].
        strength: share of the map's colours, 0 to 1.

    Returns:
        float32 (3, H, W) in [0, 1].

    Raises:
        ValueError: shapes do not fit, or values or the strength lie outside [0, 1].
    """
    import cv2

    if image.ndim != 3 or image.shape[0] != 3 or map_.shape != image.shape[1:]:
        raise ValueError(f"image is (3, H, W) and map (H, W), got {tuple(image.shape)} and {tuple(map_.shape)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is a share from 0 to 1, not {strength!r}")
    pixels = "divide it by 255" if image.max() > 10 else "denormalize() it first, of eva_utils.utils.transforms"
    for name, values, hint in (("image", image, pixels), ("map", map_, "as those of GradCAM are")):
        if not (values.min() >= -1e-4 and values.max() <= 1 + 1e-4):  # NaN is neither
            raise ValueError(
                f"the {name} has values from {float(values.min()):.2f} to {float(values.max()):.2f}, not in [0, 1]; "
                + hint
            )
    levels = (255 * map_).round().to(torch.uint8).cpu().numpy()
    colours = torch.from_numpy(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1].copy())
    return (1 - strength) * image.float().cpu() + strength * colours.permute(2, 0, 1) / 255
