"""Run OpenCLIP's visual towers that our Vision Transformer does not cover: ResNets, timm's models, CoCa.

open_clip is imported inside the functions, because the import takes seconds, and it is optional.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from wordsworth.vit_model.config import ModelError, Preprocessing, as_size
from wordsworth.vit_model.foreign.module import ModuleCheckpoint, ModuleConfig, ModuleModel, tower_state
from wordsworth.vit_model.foreign.zero_shot import PACKAGES
from wordsworth.vit_model.weight_bounds import check_model_size, count_numbers
from wordsworth.vit_model.weights import State, first_line

# The smallest text tower that open_clip builds: it builds no visual tower without one.
TINY_TEXT = {"layers": 1, "width": 64, "heads": 1, "vocab_size": 2, "context_length": 2}
VISUAL = "visual."  # what the names of the tower's tensors begin with


class OpenClipTower(nn.Module):
    """Give the embeddings of one of OpenCLIP's visual towers.

    Attributes:
        net: open_clip's module.
    """

    classifier = None  # OpenCLIP's models have no classes

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> tuple[None, torch.Tensor]:
        """Map normalised images (B, 3, H, W) to embeddings (B, D)."""
        embedding = self.net(images)
        return None, embedding[0] if isinstance(embedding, tuple) else embedding  # CoCa gives its tokens too


def build_tower(config: ModuleConfig) -> OpenClipTower:
    """Build open_clip's visual tower for a config.

    Raises:
        ModelError: open_clip is missing, or this version of it does not build the tower.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ModelError(f"{config.architecture} runs in open_clip: {PACKAGES}") from error
    try:
        return OpenClipTower(open_clip.CustomTextCLIP(text_cfg=TINY_TEXT, **config.arguments).visual)
    except Exception as error:  # open_clip's and timm's builders have many kinds of errors
        raise ModelError(
            f"open_clip {open_clip.__version__} does not build {config.architecture}: {first_line(error)}"
        ) from error


def load_open_clip_module(
    model_cfg: dict[str, Any], preprocessing: Preprocessing, state: State, weights: Path
) -> ModuleCheckpoint:
    """Load the visual tower of an OpenCLIP model for open_clip's own module.

    Args:
        model_cfg: of the open_clip_config.json.
        preprocessing: of the images.
        state: the tensors of both towers.
        weights: the file of the tensors.

    Raises:
        ModelError: open_clip is missing or does not build the tower, or the weights do not fit it.
    """
    vision = model_cfg["vision_cfg"] | {"timm_model_pretrained": False}
    config = ModuleConfig(
        library="open_clip",
        architecture=_called(vision),
        arguments={
            "embed_dim": model_cfg["embed_dim"],
            "vision_cfg": vision,
            "quick_gelu": model_cfg.get("quick_gelu", False),
        },
        image_size=as_size(int_or_tuple(vision.get("image_size", 224))),
        num_classes=0,
        embedding_dim=model_cfg["embed_dim"],
    )
    own = {name.removeprefix(VISUAL): t for name, t in state.items() if name.startswith(VISUAL)}
    checkpoint = ModuleCheckpoint(
        config=config,
        preprocessing=preprocessing,
        state=tower_state({f"net.{name}": tensor for name, tensor in own.items()}),
        extra={"format": "OpenCLIP", "weights": weights.name, "left_out": len(state) - len(own)},
    )
    with torch.device("meta"):
        check_model_size(ModuleModel(config), count_numbers(own), weights)
    _try(checkpoint)
    return checkpoint


@torch.no_grad()
def _try(checkpoint: ModuleCheckpoint) -> None:
    """Run the model once, where a mistake is still one line and not a lost actor."""
    config = checkpoint.config
    _, embedding = checkpoint.model()(torch.zeros(1, 3, *config.image_size))
    if embedding.shape != (1, config.embedding_dim):
        raise ModelError(
            f"{config.architecture} gives {tuple(embedding.shape[1:])} numbers an image, and its config says "
            f"{config.embedding_dim}"
        )


def _called(vision: dict[str, Any]) -> str:
    """Return a name of the tower for messages."""
    if "timm_model_name" in vision:
        return vision["timm_model_name"]
    if isinstance(vision.get("layers"), list | tuple):
        return f"ResNet {'-'.join(map(str, vision['layers']))}"
    return "CoCa ViT" if vision.get("attentional_pool") else "ViT"


def int_or_tuple(size: Any) -> int | tuple[int, int]:
    """Return a size of OpenCLIP's config: of a square, or (height, width)."""
    return size if isinstance(size, int) else tuple(size)
