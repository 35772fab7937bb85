"""Write a model in the forms that other code opens: timm, Hugging Face, Google's .npz, or our own.

A form that cannot say something that changes the outputs, such as the GELU, is refused, unless the caller
accepts the loss. A model that was written without a loss and read back has bit-identical tensors and the same
switches. What a form cannot say about labels and preprocessing is a note.
"""

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from wordsworth.vit_model.checkpoint import BaseCheckpoint, Checkpoint, own_model
from wordsworth.vit_model.config import OPTIONS, ModelError, ViTConfig, check_choice
from wordsworth.vit_model.file_kinds import WEIGHT_SUFFIXES
from wordsworth.vit_model.foreign.export_huggingface import resized, save_huggingface
from wordsworth.vit_model.foreign.export_npz import save_npz
from wordsworth.vit_model.foreign.export_timm import save_timm, timm_eps
from wordsworth.vit_model.head import DEFAULT_THRESHOLD, Head
from wordsworth.vit_model.model_folder import save_folder, write_whole_file

AllowedValues = dict[str, Container[Any]]  # by field of ViTConfig

EXPORT_FORMATS = ("safetensors", "timm", "hf", "npz")
# By form: the values that the form can hold. A field that is not listed can have every value.
ALLOWED_VALUES: dict[str, AllowedValues] = {
    "timm": {
        "position": ("learned-1d", "none"),
        "position_at": ("stem",),
        "normalize": (False,),
        "head_bias": (True,),
    },
    "hf": {
        "position": ("learned-1d",),
        "position_at": ("stem",),
        "class_token": (True,),
        "class_position": (True,),
        "pool": ("token", "distilled"),
        "pool_norm": (False,),
        "patch_bias": (True,),
        "head_bias": (True,),
        "projection": (False,),
        "normalize": (False,),
        "resnet": (None,),
    },
    "npz": {
        "position": ("learned-1d",),
        "position_at": ("stem",),
        "pool": ("token", "avg", "map"),
        "pool_norm": (False,),
        "patch_bias": (True,),
        "qkv_bias": (True,),
        "head_bias": (True,),
        "projection": (False,),
        "normalize": (False,),
    },
}
# Optional parts that a hybrid of timm's may have; the other parts must be off. (ALLOWED_VALUES limits the
# last three.)
HYBRID_OPTIONS = ("resnet", "pos_interp", "dropout", "drop_path", "position", "position_at", "head_bias")
ANY_CLASSES = range(1, 1 << 31)


def export_model(checkpoint: BaseCheckpoint, path: str | Path, format: str, lossy: bool = False) -> list[str]:
    """Write the model. Every file appears whole or not at all.

    Args:
        checkpoint: the model.
        path: "safetensors": a file that ends so, or else a model folder. "npz": a file that ends so. "timm",
            "hf": a folder.
        format: one of EXPORT_FORMATS.
        lossy: write also what the form cannot say in full. The losses are among the notes.

    Returns:
        Notes: what the form does not carry.

    Raises:
        ModelError: the form has no place for the model, or would change what it computes and `lossy` is not
            set.
    """
    path = Path(path)
    check_choice("format", format, EXPORT_FORMATS)
    _check_suffix(path, format)
    if format == "safetensors":
        _save_ours(path, checkpoint)
        return []
    checkpoint = own_model(checkpoint, f"the format {format}")
    for name, values in _allowed_values(checkpoint.config, format).items():
        value = getattr(checkpoint.config, name)
        if value not in values:
            raise ModelError(f"the format {format} has no place for {name} = {value!r} of this model")
    losses = _losses(checkpoint.config, format)
    if losses and not lossy:
        advice = "--lossy writes it all the same"
        raise ModelError(f"the format {format} cannot say it all: {'; '.join(losses)} ({advice})")
    writers: dict[str, Callable[[Path, Checkpoint], None]] = {
        "timm": save_timm,
        "hf": save_huggingface,
        "npz": save_npz,
    }
    writers[format](path, checkpoint)
    return losses + _notes(checkpoint, format)


def _check_suffix(path: Path, format: str) -> None:
    allowed = {"npz": (".npz",), "safetensors": (".safetensors", "")}.get(format, ("",))
    if path.suffix in allowed or path.suffix not in (*WEIGHT_SUFFIXES, ""):
        return
    what = "one file, whose name must end in .npz" if format == "npz" else "a folder"
    raise ModelError(f"{path}: the format {format} is {what}")


def _allowed_values(config: ViTConfig, format: str) -> AllowedValues:
    """Return the values that the form can hold. A hybrid or a distilled model may have few other parts."""
    allowed = dict(ALLOWED_VALUES.get(format, {}))
    if format == "timm" and config.resnet is not None:
        for name, default in OPTIONS.items():
            if name not in HYBRID_OPTIONS:
                allowed[name] = (default,)
    if format in ("timm", "hf") and config.pool == "distilled":
        allowed |= {
            "registers": (1,),
            "position": ("learned-1d",),
            "class_position": (True,),
            "pool_norm": (False,),
            "num_classes": ANY_CLASSES,
        }
    return allowed


def _losses(config: ViTConfig, format: str) -> list[str]:
    """Return what code that opens the form would compute in another way."""
    losses = []
    if format == "npz":
        if config.gelu != "tanh":
            ours = f"this model has the {config.gelu} one (logits move by about 1e-3)"
            losses.append(f"Google's code computes the tanh GELU, {ours}")
        if config.norm_eps != 1e-6:
            losses.append(f"Google's code has a norm eps of 1e-06, this model {config.norm_eps}")
    if format == "timm":
        if config.norm_eps != timm_eps(config):
            ours = f"this model has {config.norm_eps} (logits move by about 1e-5)"
            losses.append(f"timm would take a norm eps of {timm_eps(config)}, {ours}")
        if config.resnet is not None:
            losses.append("timm standardises a hybrid's kernels with another eps (logits move by about 1e-4)")
    return losses


def _notes(checkpoint: Checkpoint, format: str) -> list[str]:
    """Return what the form does not say about images, labels and other sizes; no tensor depends on it."""
    config = checkpoint.config
    preprocessing = checkpoint.preprocessing
    notes = []
    theirs = {"timm": "timm", "hf": "hf", "npz": "google"}[format]
    if config.pos_interp != theirs:
        how = f"as {theirs} does, not as {config.pos_interp} does"
        notes.append(f"at another image size the position table would be resampled {how}")
    if format in ("timm", "hf") and preprocessing.exif == "ignore":
        notes.append("that EXIF orientation is ignored is not said")
    if format == "timm" and config.num_classes == 1000 and not checkpoint.labels:
        notes.append("1000 classes without names are taken for ImageNet's by timm")
    if format == "hf" and preprocessing.crop_mode == "center":
        notes += _crop_notes(checkpoint)
    if format == "npz":
        notes.append("an .npz carries neither the preprocessing nor the names of the classes")
    if format != "safetensors":
        notes += _head_notes(checkpoint.head, format)
    return notes


def _head_notes(head: Head, format: str) -> list[str]:
    """Return what the form does not say of the head's kind and threshold."""
    if head == Head():
        return []
    if format == "npz":
        return [f"an .npz does not say that the head is a {head.kind}: --head {head.kind} does"]
    if format == "timm":
        return [f"timm gives logits: that the head is a {head.kind} stands in a field of config.json of ours"]
    if head.kind == "sigmoid" and head.threshold != DEFAULT_THRESHOLD:
        return [f"the threshold {head.threshold} is not said"]
    return []


def _crop_notes(checkpoint: Checkpoint) -> list[str]:
    height, width = checkpoint.config.image_size
    if height != width:
        advice = "prepare the images in another way"
        return [f"transformers pads where it crops a size that is not square: {advice}"]
    crop_pct = checkpoint.preprocessing.crop_pct
    theirs = height / min(resized(checkpoint.preprocessing, checkpoint.config.image_size))
    if theirs != crop_pct:
        return [f"crop_pct {crop_pct} becomes {theirs:.6g}: sizes are whole pixels"]
    return []


def _save_ours(path: Path, checkpoint: BaseCheckpoint) -> None:
    if path.suffix != ".safetensors":
        save_folder(path, checkpoint)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole_file(path, checkpoint.to_bytes())
