"""Write a model as Google's .npz: float32 arrays under flax's names."""

import io
from pathlib import Path

import numpy as np

from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.foreign import rename_tables, renames
from wordsworth.vit_model.model_folder import write_whole_file


def save_npz(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file: in the original naming, or in big_vision's if [class] is missing or has no position.

    Raises:
        ModelError: the naming has no place for the model.
    """
    config = checkpoint.config
    theirs = renames.write(checkpoint.state, _table(config), config, "npz")
    buffer = io.BytesIO()
    np.savez(buffer, **{name: tensor.numpy() for name, tensor in theirs.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole_file(path, buffer.getvalue())


def _table(config: ViTConfig) -> renames.Table:
    if config.class_rows and config.pool == "token":
        if config.resnet is None:
            return rename_tables.NPZ
        return rename_tables.NPZ_HYBRID if config.resnet else rename_tables.NPZ_ROOT
    if config.resnet is not None or (config.class_token and config.pool != "token"):
        raise ModelError("the format npz has no place for this pooling with a class token, nor in a hybrid")
    return rename_tables.NPZ_BIG_VISION
