"""Choose how images are prepared where the weights do not say it, and tell the user what was chosen."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.foreign.image_processors import PREPROCESSOR_CONFIG, has_image_processor
from wordsworth.vit_model.foreign.translate import Translated
from wordsworth.vit_model.variants import variant_name

Note = Callable[[str], None]  # takes a line for the user

OPTIONS = "--interpolation, --crop-pct, --crop-mode, --mean, --std"  # what sets another preparation
SWAG_OPTIONS = "--interpolation bicubic --crop-pct 1"
# The names of torchvision's own files: vit_l_16-852ce7e3.pth, vit_l_16_swag-..., vit_l_16_lc_swag-...
TORCHVISION_FILE = re.compile(r"vit_[blh]_\d+(?P<swag>(_lc)?_swag)?-[0-9a-f]{8}\.pth")
RESIZED_OF_L_16 = 242  # torchvision crops 224 of so many pixels; of 256 for its other models


def usual_preprocessing(found: Translated, config: ViTConfig, path: Path, note: Note) -> Preprocessing:
    """Return how the code of a format prepares images.

    Args:
        found: the weights.
        config: of the weights.
        path: their file.
        note: takes a line where the format leaves the preparation open.
    """
    if found.format.name == "torchvision":
        return _torchvision(found, config, path, note)
    usual = found.format.preprocessing
    if usual is None:
        usual = Preprocessing()
        note(f"{path.name} does not say how images are prepared, so: {told(usual)} ({OPTIONS})")
    siglip = config.pool == "map" and not config.num_classes
    if found.format.name == "big_vision's .npz" and siglip:
        return replace(usual, crop_pct=1.0, crop_mode="squash")
    return usual


def note_guess(folder: Path, kind: str, preprocessing: Preprocessing, note: Note) -> None:
    """Tell how images are prepared for a folder of transformers, if the folder does not say it."""
    if not has_image_processor(folder):
        note(
            f"there is no {PREPROCESSOR_CONFIG}: images are prepared as for most models of type {kind}: "
            f"{told(preprocessing)} ({OPTIONS})"
        )


def told(preprocessing: Preprocessing) -> str:
    """Return a preparation as one part of a line."""
    fields = {name: value for name, value in preprocessing.to_dict().items() if name != "exif"}
    fields["crop_pct"] = round(preprocessing.crop_pct, 4)
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def _torchvision(found: Translated, config: ViTConfig, path: Path, note: Note) -> Preprocessing:
    """Choose between the preparations of torchvision's kinds of weights, by the file's name or its sizes.

    IMAGENET1K_V1 is bilinear with a crop; both kinds of SWAG are bicubic without one. SWAG_E2E has larger
    images than 224 x 224 pixels; SWAG_LINEAR has 224 x 224 too.
    """
    v1 = found.format.preprocessing or Preprocessing()
    variant = variant_name(config)
    if variant == "L/16":
        v1 = replace(v1, crop_pct=224 / RESIZED_OF_L_16)
    swag = replace(v1, interpolation="bicubic", crop_pct=1.0)
    own = TORCHVISION_FILE.fullmatch(path.name)
    if own:
        return swag if own["swag"] else v1
    is_e2e = config.image_size != (224, 224)
    chosen = swag if is_e2e or variant == "H/14" else v1  # of H/14 there is no V1
    if chosen == v1 and variant in ("B/16", "L/16"):
        note(
            f"{path.name} does not say which of torchvision's weights it has. Images are prepared for "
            f"IMAGENET1K_V1 ({told(v1)}); SWAG_LINEAR needs {SWAG_OPTIONS}"
        )
    else:
        how = f"so as torchvision: {told(chosen)} ({OPTIONS})"
        note(f"{path.name} does not say how images are prepared, {how}")
    return chosen
