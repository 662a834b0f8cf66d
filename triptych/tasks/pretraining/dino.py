"""DINO: an image encoder learns from its own slow copy (Caron et al. 2021, section 3.1)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check
from triptych.core.errors import ConfigError
from triptych.core.outputs import Predictions
from triptych.data.collate.image import MultiCropCollator
from triptych.models.families import family_of, model_sizes
from triptych.objectives.dino import (
    dino_loss,
    moved_center,
    teacher_distribution,
    teacher_momentum,
)
from triptych.objectives.momentum import MomentumEncoder
from triptych.tasks.spec import CollatorInputs, TaskConfig, TaskRecipe, TaskSpec
from triptych.train.chance import Chance


@dataclass(frozen=True, kw_only=True, slots=True)
class DINOConfig(TaskConfig):
    """Settings of self-distillation. The defaults are the paper's for ViT-B/16.

    Attributes:
        out_dim: Classes K of the head (65,536).
        hidden_dim: Width of its two hidden layers (2,048).
        bottleneck_dim: Width before the last layer, where states are normalised to length 1 (256).
        student_temperature: Temperature of the student's softmax (0.1).
        teacher_temperature: Temperature of the teacher's softmax (0.07); lower is sharper.
        start_teacher_temperature: Initial temperature of the teacher (0.04).
        teacher_warmup_steps: Steps over which it rises (the paper: 50 of 400 epochs).
        momentum: Initial momentum of the teacher (0.996); it rises to 1.
        center_momentum: Momentum of the center's running mean (0.9).
        freeze_last_layer_steps: Steps during which the last layer is frozen (the paper: 1 to 3
            epochs).
        max_steps: Steps over which the momentum rises: the length of the run.
        init_std: Standard deviation of the head's random weights (0.02).
        save: Whose image encoder the model folder gets: the teacher's, which the paper evaluates,
            or the student's.
    """

    KIND: ClassVar[str] = "dino"

    out_dim: int = 65_536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    start_teacher_temperature: float = 0.04
    teacher_warmup_steps: int = 62_500
    momentum: float = 0.996
    center_momentum: float = 0.9
    freeze_last_layer_steps: int = 3750
    max_steps: int = 500_000
    init_std: float = 0.02
    save: Literal["teacher", "student"] = "teacher"

    def __post_init__(self) -> None:
        """Reject values out of range."""
        for name in ("out_dim", "hidden_dim", "bottleneck_dim", "max_steps"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "be at least 1")
        for name in ("teacher_warmup_steps", "freeze_last_layer_steps"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "be at least 0")
        for name in ("momentum", "center_momentum"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "be in [0, 1]")
        for name in ("student_temperature", "teacher_temperature", "start_teacher_temperature"):
            check(getattr(self, name) > 0, name, getattr(self, name), "be above 0")


class DINOHead(nn.Module):
    """Three layers to a state of length 1, then its cosine with each of K directions (appendix C).

    Without batch norms, as the paper's ViT have it. The last layer has no bias, and its rows have
    length 1 (weight norm with a fixed gain).
    """

    def __init__(self, embed_dim: int, config: DINOConfig) -> None:
        super().__init__()
        dims = [embed_dim, config.hidden_dim, config.hidden_dim, config.bottleneck_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.directions = nn.Parameter(torch.empty(config.out_dim, config.bottleneck_dim))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=config.init_std)
            nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.directions, std=config.init_std)

    def forward(self, x: Tensor, *, freeze_last: bool = False) -> Tensor:
        """Map (..., D) to (..., K) in [-1, 1].

        Args:
            x: Pooled states.
            freeze_last: Whether the last layer gets no gradient.
        """
        for number, layer in enumerate(self.layers):
            x = layer(x if number == 0 else F.gelu(x))
        directions = self.directions.detach() if freeze_last else self.directions
        return F.linear(F.normalize(x, dim=-1), F.normalize(directions, dim=-1).to(x.dtype))


class SmallCropEncoder:
    """Runs a model on smaller images: the same parameters, position tables resized.

    A second model of the smaller size has the first one's modules, but for those whose tables or
    buffers depend on the size and those around them. Their parameters are taken from the first
    model in each call, the tables resized, so gradients reach the first model's, as in the released
    code, and parameters may be replaced or sharded meanwhile. Building it draws nothing from the
    random state, so a run that goes on builds it again and stays the same.

    Args:
        model: Of any family with an image encoder.
        image_size: Side of the smaller images in pixels.

    Raises:
        ConfigError: The side is no multiple of the patch size.
    """

    def __init__(self, model: Any, image_size: int) -> None:
        patch = model_sizes(model.config).patch_size
        if image_size % patch:
            must = f"be a multiple of patch {patch}"
            raise ConfigError(f"crops.small_size = {image_size}: must {must}")
        self._model, self._family, self._image_size = model, family_of(model.config), image_size
        own = dict(model.named_parameters(remove_duplicate=False))
        state, config = self._family.resize(own, model.config, image_size)
        with torch.random.fork_rng(devices=[]):
            twin: Any = self._family.build(config)
        sized = {name for name in own if state[name] is not own[name]}
        sized |= _other_buffers(model, twin)
        self._own = _share_modules(model, twin, sized)
        for _, mine in self._own:
            mine._parameters.clear()
        self._twin = twin.to(next(model.parameters()).device)  # buffers, such as positions

    def __call__(self, image: Tensor) -> Tensor:
        """Return the (B, D) pooled states of (B, 3, s, s) images."""
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        state, _ = self._family.resize(parameters, self._model.config, self._image_size)
        for path, mine in self._own:
            source = self._model.get_submodule(path)
            _copy_switches(source, mine)
            for leaf in source._parameters:
                mine.__dict__[leaf] = state.get(f"{path}.{leaf}".lstrip("."))
        return self._twin.encode_image(image).pooled  # type: ignore[no-any-return]


def _other_buffers(model: nn.Module, twin: nn.Module) -> set[str]:
    """Return the names of the buffers that a model of another size has otherwise."""
    mine = dict(twin.named_buffers())
    return {name for name, buffer in model.named_buffers() if buffer.shape != mine[name].shape}


def _share_modules(
    model: nn.Module, twin: nn.Module, sized: set[str], path: str = ""
) -> list[tuple[str, nn.Module]]:
    """Put the model's modules into its twin where nothing in them depends on the size.

    Returns:
        The modules that the twin keeps, with their paths.
    """
    kept = [(path, twin)]
    for name, child in model.named_children():
        inner = f"{path}.{name}".lstrip(".")
        if any(entry.startswith(f"{inner}.") for entry in sized):
            kept += _share_modules(child, twin.get_submodule(name), sized, inner)
        else:
            twin._modules[name] = child
    return kept


def _copy_switches(source: nn.Module, target: nn.Module) -> None:
    """Give a module another one's mode and rates of dropping."""
    target.__dict__.update({k: v for k, v in vars(source).items() if isinstance(v, bool | float)})


def image_side(model: Any) -> Any:
    """Return a model that is like another on images, without what no image goes through.

    It shares the other one's tensors; modules for texts, pairs and losses keep no parameter. Which
    ones these are is seen from the gradient of one image.
    """
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach()) for p in model.parameters()}
    side = copy.deepcopy(model, shared).eval()
    parameters = list(side.parameters())
    size = side.image_size
    with torch.enable_grad():
        pooled = side.encode_image(parameters[0].new_zeros(1, 3, size, size)).pooled.sum()
        gradients = torch.autograd.grad(pooled, parameters, allow_unused=True)
    used = {id(p) for p, g in zip(parameters, gradients, strict=True) if g is not None}
    for module in list(side.modules()):
        inside = {id(p) for p in module.parameters()}
        if inside and not inside & used:
            for child in module.modules():
                child._parameters.clear()
    return side


class DINO:
    """The Task of self-distillation, for any model with an image encoder.

    Student and teacher are the image encoder and a head; what no image goes through stays as it
    is, and the teacher has no copy of it. The student sees all crops, the teacher the large ones.

    Deviations from the paper: weight decay stays constant (there it rises from 0.04 to 0.4), the
    teacher's temperature rises with each step instead of each epoch, and crops differ in colour by
    RandAugment.

    Beside the loss it returns `teacher_entropy`: at 0 one class has won, at ln K none has.
    """

    batch_keys = frozenset({"large_crops", "small_crops", "index"})
    objective_names = frozenset({"dino"})

    def __init__(self, model: Any, config: DINOConfig) -> None:
        self.config = config
        head = DINOHead(model.feature_dims.image, config)
        side = image_side(model)
        teacher = MomentumEncoder(nn.ModuleDict({"model": side, "head": head}), config.momentum)
        self._followed = [name for name, _ in side.named_parameters()]
        state = nn.Module()
        state.register_buffer("center", torch.zeros(config.out_dim))
        self.modules = nn.ModuleDict(
            {
                "model": model,
                "dino_head": head,
                "teacher": teacher,
                "state": state,
            }
        )
        self._smaller: dict[int, SmallCropEncoder] = {}
        self._output_means: Tensor | None = None  # (K,) sum over the step's micro-batches
        self._num_outputs = 0
        self._step = 0

    @property
    def model(self) -> Any:
        """The model that is trained."""
        return self.modules["model"]

    @property
    def teacher(self) -> nn.ModuleDict:
        """The slow copy: `model`, which reads images alone, and `head`."""
        return cast(nn.ModuleDict, cast(MomentumEncoder, self.modules["teacher"]).module)

    @property
    def center(self) -> Tensor:
        """(K,) running mean of the teacher's outputs."""
        return cast(Tensor, self.modules["state"].center)

    @property
    def teacher_temperature(self) -> float:
        """Temperature of the teacher at the current step."""
        c = self.config
        share = min(1.0, self._step / c.teacher_warmup_steps) if c.teacher_warmup_steps else 1.0
        low, high = c.start_teacher_temperature, c.teacher_temperature
        return low + share * (high - low)

    def extra_state(self) -> dict[str, int]:
        """Return what a checkpoint must hold besides tensors."""
        return {"step": self._step}

    def load_extra_state(self, state: dict[str, int]) -> None:
        """Restore what `extra_state` returned."""
        self._step = state["step"]

    def losses(
        self, batch: Mapping[str, Tensor], *, active: frozenset[str] = objective_names
    ) -> dict[str, Tensor]:
        """Return {"dino": ...} and what is only logged.

        Args:
            batch: `large_crops` (G, B, 3, S, S) and `small_crops` (C, B, 3, s, s), C may be 0.
            active: Not read: there is one objective.
        """
        del active
        large, small = batch["large_crops"], batch["small_crops"]
        with torch.no_grad():
            targets = self.teacher["head"](_pooled(self.teacher["model"], large))  # (G, B, K)
            probs = teacher_distribution(targets, self.center, self.teacher_temperature)
            entropy = -torch.special.xlogy(probs, probs).sum(dim=-1).mean()
        if self.model.training:
            mean = targets.float().flatten(0, 1).mean(dim=0)
            self._output_means = mean if self._output_means is None else self._output_means + mean
            self._num_outputs += 1
        states = [_pooled(self.model, large)]
        if len(small):
            states.append(self._small_states(small))
        frozen = self._step < self.config.freeze_last_layer_steps
        logits = self.modules["dino_head"](torch.cat(states), freeze_last=frozen)  # (G + C, B, K)
        loss = dino_loss(logits, probs, self.config.student_temperature)
        return {"dino": loss, "teacher_entropy": entropy}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the teacher and the center.

        Args:
            step: Optimizer steps done so far, this one included.
        """
        self._step = step
        teacher = cast(MomentumEncoder, self.modules["teacher"])
        done = max(0, step - 1)  # the first step takes the schedule's first value
        teacher.momentum = teacher_momentum(done, self.config.max_steps, self.config.momentum)
        own = dict(self.model.named_parameters(remove_duplicate=False))
        head = self.modules["dino_head"].parameters()
        teacher.follow([*(own[name] for name in self._followed), *head])
        if self._output_means is not None:  # micro-batches are equally large
            mean = self._output_means / self._num_outputs
            self.center.copy_(moved_center(self.center, mean[None], self.config.center_momentum))
        self._output_means, self._num_outputs = None, 0

    def model_state(self) -> dict[str, Tensor]:
        """Return the state dict of the model folder: the teacher's where `save` says so."""
        state: dict[str, Tensor] = self.model.state_dict()
        if self.config.save == "teacher":
            state |= dict(self.teacher["model"].named_parameters())
        return {name: tensor.detach() for name, tensor in state.items()}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the (B, D) state of each image, for a probe; reads `image` and `index`.

        It is that of the model which is saved.
        """
        model: Any = self.teacher["model"] if self.config.save == "teacher" else self.model
        states = model.encode_image(batch["image"]).pooled
        return Predictions(index=batch["index"].tolist(), embeddings={"image": states})

    def _small_states(self, small: Tensor) -> Tensor:
        """Return the (C, B, D) states of small crops."""
        size = small.shape[-1]
        if size not in self._smaller:
            self._smaller[size] = SmallCropEncoder(self.model, size)
        return self._smaller[size](small.flatten(0, 1)).view(*small.shape[:2], -1)


def _pooled(model: Any, crops: Tensor) -> Tensor:
    """Return the (G, B, D) states of crops (G, B, 3, S, S)."""
    states: Tensor = model.encode_image(crops.flatten(0, 1)).pooled
    return states.view(*crops.shape[:2], -1)


def _crop(config: DINOConfig, inputs: CollatorInputs) -> MultiCropCollator:
    del config
    view = inputs.patches()
    return MultiCropCollator(view.image, view.crops)


SPEC = TaskSpec(
    config=DINOConfig,
    trained_for="vision",
    build=lambda config, model, *_: DINO(model, config),
    collator=_crop,
    needs=("image",),
    recipes=(TaskRecipe("dino"),),
    pretrains=True,
    tokenizer="optional",
    chances=lambda config: {"dino": Chance(outputs=config.out_dim)},
)
