"""Run any timm model: timm's own module computes what our Vision Transformer does not cover.

timm is imported inside the functions, because the import takes seconds.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.hub import Note
from wordsworth.vit_model.foreign.module import (
    ModuleCheckpoint,
    ModuleConfig,
    UnfilledParameters,
    tower_state,
)
from wordsworth.vit_model.foreign.timm import (
    build_net,
    is_projection,
    labels_of,
    model_args,
    preprocessing_of,
)
from wordsworth.vit_model.foreign.timm_download import download_weights
from wordsworth.vit_model.foreign.timm_weights import check_fit, is_of, num_classes_of, under_names_of
from wordsworth.vit_model.foreign.wrappers import unwrap
from wordsworth.vit_model.head import Head
from wordsworth.vit_model.weights import State, first_line, load_weights

# Entries of timm's pretrained_cfg that decide what timm builds. The names of the first and the final layer
# are for models that timm prunes, and for files with another number of classes.
BUILD_ENTRIES = ("num_classes", "global_pool", "input_size", "fixed_input_size", "classifier", "first_conv")
# Arguments of timm's builder by which it would open a file of weights or reach for a server.
LOADING = ("pretrained", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "pretrained_model_args")


class TimmTower(nn.Module):
    """Give logits and pre-logits of a timm model.

    Attributes:
        net: timm's module.
        linear_head: the final layer of `net` is linear and takes the pre-logits.
        projection: the final layer of `net` leads into a space that images share with texts, as CLIP's does.
    """

    def __init__(self, net: nn.Module, linear_head: bool, projection: bool):
        super().__init__()
        self.net = net
        self.linear_head = linear_head
        self.projection = projection
        self.has_head = net.num_classes > 0 and not projection

    @property
    def classifier(self) -> nn.Linear | None:
        """Return the final layer of `net`, if it is linear and takes the pre-logits."""
        return self.net.get_classifier() if self.linear_head else None

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Map normalised images (B, 3, H, W) to logits (B, K) or None, and embeddings (B, D).

        The embedding is what timm calls pre-logits, or CLIP's projection of them.
        """
        features = self.net.forward_features(images)
        if self.projection:
            return None, self.net.forward_head(features)
        embedding = self.net.forward_head(features, pre_logits=True)
        if not self.has_head:
            return None, embedding
        if self.classifier is not None:
            embedding = embedding.float()
            return self.classifier(embedding), embedding
        return self.net.forward_head(features), embedding


def build_tower(config: ModuleConfig) -> TimmTower:
    """Build timm's module for a config.

    Raises:
        ModelError: this version of timm does not build it.
    """
    return TimmTower(_create(config.architecture, config.arguments), config.linear_head, config.projection)


def _create(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """Build timm's module without weights.

    Raises:
        ModelError: timm does not build it, or the arguments would have timm load weights itself.
    """
    import timm

    cfg = arguments.get("pretrained_cfg", {})
    loading = [name for name in arguments if name in LOADING]
    loading += [f"pretrained_cfg.{name}" for name in cfg if name not in BUILD_ENTRIES]
    if loading or not timm.is_model(architecture):
        what = loading[0] if loading else f"the architecture {architecture!r}"
        raise ModelError(f"timm:{architecture}: its config has {what}, which no model folder needs")
    try:
        return timm.create_model(architecture, **arguments)
    except Exception as error:  # timm's builders have many kinds of errors
        raise ModelError(
            f"timm {timm.__version__} does not build {architecture}: {first_line(error)}"
        ) from error


def load_timm_module(
    name: str,
    weights: str | Path | None = None,
    key: str | None = None,
    revision: str | None = None,
    note: Note = print,
) -> ModuleCheckpoint:
    """Load a model of timm's for timm's own module.

    Args:
        name: timm's name, with its tag or without; or hf-hub:OWNER/NAME or local-dir:FOLDER.
        weights: a file to use in place of timm's own weights; then nothing is downloaded.
        key: the set of tensors to take from a file of `weights` with several; see `load_weights`.
        revision: of timm's repository on the hub.
        note: gets what the user should know.

    Raises:
        ModelError: an unknown name, weights that do not fit, no network, a model that gives no vector for an
            image or takes other images than RGB.
    """
    net, config = described(name)
    cfg = build_net(name).pretrained_cfg
    if weights:
        config, state, origin = _fitted(net, config, Path(weights), key)
    else:
        tensors, origin = download_weights(name, revision, note)
        state = check_fit(net, tensors, f"timm:{name}")
    if type(net).__name__ == "NaFlexVit":
        height, width = config.image_size
        note(f"timm:{name} takes images of any shape; here all are cut to {height} x {width} pixels")
    same_classes = config.num_classes == (0 if config.projection else net.num_classes)
    return ModuleCheckpoint(
        config=config,
        preprocessing=preprocessing_of(name, cfg),
        labels=labels_of(cfg, config.num_classes) if same_classes else None,
        state=_tower_state(state),
        extra={"timm": name, "weights": "timm"} | origin,
    )


def with_weights(known: ModuleCheckpoint, weights: Path, key: str | None = None) -> ModuleCheckpoint:
    """Return a model with the weights of a file in place of its own; the number of classes is the file's.

    Args:
        known: a model that timm's module computes.
        weights: the file.
        key: the set of tensors to take from a file with several; see `load_weights`.

    Raises:
        ModelError: the weights do not fit.
    """
    net, config = _measured(known.config)
    config, state, origin = _fitted(net, config, weights, key)
    found = replace(known, config=known.config, state=_tower_state(state), extra=origin)
    if config.num_classes == known.config.num_classes:
        return found
    return replace(found, config=config, labels=None, head=Head())


def _fitted(
    net: nn.Module, config: ModuleConfig, weights: Path, key: str | None
) -> tuple[ModuleConfig, State, dict[str, Any]]:
    """Read a file of weights for a module.

    Returns:
        The config with the file's number of classes, the tensors as timm calls them, and their origin.
    """
    found = unwrap(load_weights(weights, key), lambda tensors: is_of(net, tensors), weights)
    state = under_names_of(net, found.state)
    num_classes = num_classes_of(net, state)
    if num_classes != net.num_classes:
        arguments = config.arguments | {"num_classes": num_classes}
        net, config = _measured(replace(config, arguments=arguments, projection=False))
    return config, check_fit(net, state, weights), found.provenance(weights, len(found.outside))


def _tower_state(state: State) -> State:
    return tower_state({f"net.{key}": tensor for key, tensor in state.items()})


def module_config(name: str) -> ModuleConfig:
    """Return the config of a timm model, without its weights.

    Raises:
        ModelError: as `described`.
    """
    return described(name)[1]


def described(name: str) -> tuple[nn.Module, ModuleConfig]:
    """Return timm's module without memory for its weights, and its config.

    The config names the architecture and all that decides what timm builds: it needs neither the hub nor the
    folder that the name may lead to.

    Args:
        name: timm's name, with its tag or without; or hf-hub:OWNER/NAME or local-dir:FOLDER.

    Raises:
        ModelError: an unknown name, no network, a model that gives no vector for an image or takes other
            images than RGB.
    """
    net = build_net(name)
    cfg = net.pretrained_cfg
    preprocessing_of(name, cfg)
    if cfg["input_size"][0] != 3:
        raise ModelError(f"timm:{name} takes images of {cfg['input_size'][0]} channels; images here are RGB")
    built_from = {entry: cfg[entry] for entry in BUILD_ENTRIES if cfg.get(entry) is not None}
    config = ModuleConfig(
        library="timm",
        architecture=cfg["architecture"],
        arguments={"pretrained_cfg": built_from, **model_args(name)},
        image_size=cfg["input_size"][1:],
        num_classes=net.num_classes,
        embedding_dim=net.num_features,
        projection=is_projection(name, cfg),
    )
    return _measured(config)


@torch.no_grad()
def _measured(config: ModuleConfig) -> tuple[nn.Module, ModuleConfig]:
    """Add to a config what a forward pass tells: the length of the embedding, the kind of the head.

    The pass runs on torch's meta device, which computes shapes only.

    Returns:
        timm's module on the meta device, and the config.

    Raises:
        ModelError: the model gives something else than one vector for an image.
    """
    with torch.device("meta"), UnfilledParameters():
        net = _create(config.architecture, config.arguments).eval()
    try:
        features = net.forward_features(torch.zeros(2, 3, *config.image_size, device="meta"))
        embedding, steps = _recorded(net, features, pre_logits=True)
        logits, all_steps = _recorded(net, features)
    except Exception as error:  # models without these two calls, with parts that are missing here
        raise ModelError(f"timm:{config.architecture} does not run here: {first_line(error)}") from error
    for vector in (embedding, logits):
        shape = tuple(vector.shape) if isinstance(vector, torch.Tensor) else type(vector).__name__
        if not isinstance(shape, tuple) or len(shape) != 2:
            raise ModelError(
                f"timm:{config.architecture} gives {shape} for two images, not a vector each: "
                "it is neither a classifier nor an embedder"
            )
    if config.projection:
        return net, replace(config, num_classes=0, embedding_dim=logits.shape[-1])
    head = net.get_classifier()
    linear = isinstance(head, nn.Linear) and all_steps == steps + _recorded_steps(head, embedding)
    measured = replace(
        config, num_classes=net.num_classes, embedding_dim=embedding.shape[-1], linear_head=linear
    )
    return net, measured


class _Recorder(TorchDispatchMode):
    """Note every operation that runs, with the shapes that come out.

    Attributes:
        steps: the operations, in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.steps.append(f"{func} {getattr(result, 'shape', '')}")
        return result


def _recorded(net: nn.Module, features: Any, **options: Any) -> tuple[Any, list[str]]:
    """Return what a net's head gives for features, and the operations that it takes."""
    with _Recorder() as recorder:
        result = net.forward_head(features, **options)
    return result, recorder.steps


def _recorded_steps(layer: nn.Module, vectors: torch.Tensor) -> list[str]:
    """Return the operations that a layer takes."""
    with _Recorder() as recorder:
        layer(vectors)
    return recorder.steps
