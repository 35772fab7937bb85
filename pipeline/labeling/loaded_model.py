"""Hold a model for use from Python: label, embed and explain single images with a run's own functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import nn

from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.images.codec import DecodeError
from wordsworth.pipeline.images.decode import MAX_DETAIL, DecodeSettings, open_image
from wordsworth.pipeline.labeling.head_columns import head_columns
from wordsworth.pipeline.labeling.local_labeler import UNIT_ROWS, LocalLabeler
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.sources.model_inputs import (
    ModelInput,
    crop_input,
    decode_input,
    find_image,
    naming_refusals,
    read_image,
)
from wordsworth.pipeline.storage.filesystem import StorageOptions
from wordsworth.pipeline.unit import SAMPLE, Unit
from wordsworth.vit_model.attended import layout_of, see
from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.config import ModelConfig, ModelError, Preprocessing
from wordsworth.vit_model.patches import patchify

# A path or a URL, encoded bytes, an image of Pillow's, or uint8 (h, w), (h, w, 3) or (h, w, 4).
GivenImage: TypeAlias = str | Path | bytes | Image.Image | np.ndarray
Row: TypeAlias = dict[str, Any]
Images: TypeAlias = GivenImage | Sequence[GivenImage]
PLACE = ("key", "shard", "index", "offset", "size")  # columns of a run's row that these images do not have


@dataclass(kw_only=True)
class LoadedModel:
    """Hold a model with its preprocessing, its classes and its device.

    Images are paths, URLs, encoded bytes, images of Pillow's, or uint8 arrays (h, w), (h, w, 3) or (h, w, 4)
    in the order RGB. Where a method takes a list of them, it gives a list, or one more axis.

    Attributes:
        name: of the model, as it was given.
        checkpoint: the model at rest.
        precision: "auto", "fp32" or "bf16".
        device: "auto", "cpu" or "cuda".
        storage_options: of the stores of images that are given by name.
    """

    name: str
    checkpoint: BaseCheckpoint
    precision: str = "auto"
    device: str = "auto"
    storage_options: StorageOptions = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._labeler: LocalLabeler | None = None
        self._request: LabelRequest | None = None

    def __repr__(self) -> str:
        height, width = self.config.image_size
        num_classes = self.config.num_classes
        classes = plural(num_classes, "class", "classes") if num_classes else "no classes"
        return f"<model {self.name}: {width} x {height} pixels, {classes}>"

    @property
    def config(self) -> ModelConfig:
        """Return the sizes of the model."""
        return self.checkpoint.config

    @property
    def preprocessing(self) -> Preprocessing:
        """Return the way from an image to the pixels that the model takes."""
        return self.checkpoint.preprocessing

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Return the name of each class, or None if the classes have no names."""
        return self.checkpoint.labels

    def model(self) -> nn.Module:
        """Return the torch module in eval mode: normalised floats (B, 3, H, W), as `preprocess` makes them,
        to logits."""
        return self.checkpoint.model()

    def pixels(self, image: GivenImage) -> np.ndarray:
        """Return what the model sees of an image, before it is normalised: uint8 (H, W, 3).

        These are the pixels that a run labels: decoded, turned upright, resized and cropped by its functions.

        Raises:
            UserError: the image cannot be read or decoded.
        """
        return self._input(image).pixels

    def preprocess(self, image: Images) -> torch.Tensor:
        """Return what the torch module takes: float32 (3, H, W), or (N, 3, H, W) of a list.

        Raises:
            UserError: an image cannot be read or decoded.
        """
        none = torch.empty(0, 3, *self.config.image_size)
        return _one_or_all(image, lambda images: torch.cat([none, *map(self._normalised, images)]))

    def predict(self, image: Images, *, top_k: int = 5, threshold: float | None = None) -> Any:
        """Return what a run would say of an image, or of each image of a list: the columns of its row.

        These are "width", "height", "label_id", "label", "score" and "topk", for some models "labels" or
        "value", and "error" with "error_detail": an image that cannot be decoded is no reason to stop.

        Args:
            image: one, or a list.
            top_k: classes in "topk". Another number than before prepares the model again.
            threshold: score from which on a class stands in "labels".

        Returns:
            A row, or a list of rows.

        Raises:
            UserError: the model has no classes, or an image is not there or cannot be read.
        """
        request = self._asking(top_k, threshold)
        head_columns(request, self.checkpoint)  # refuses a model without classes
        labeler = self._prepared(request)
        return _one_or_all(image, lambda images: self._rows(images, labeler))

    def embed(self, image: Images) -> np.ndarray:
        """Return the vector that enters the final linear head: float32 (D,), or (N, D) of a list.

        Raises:
            UserError: an image cannot be read or decoded.
        """
        labeler = self._any_prepared()

        def vectors(images: Sequence[GivenImage]) -> np.ndarray:
            parts = [np.empty((0, self.config.embedding_dim), np.float32)]
            for begin in range(0, len(images), UNIT_ROWS):
                inputs = [self._input(one) for one in images[begin : begin + UNIT_ROWS]]
                parts.append(labeler.predictor.predict(self._patches(inputs))["embedding"])
            return np.concatenate(parts)

        return _one_or_all(image, vectors)

    def attention_rollout(self, image: GivenImage) -> np.ndarray:
        """Return the share of each patch in the state of an image (arXiv 2005.00928): float32 (h, w).

        The shares are from 0 to 1, and sum to 1 less the share of the tokens that are no patches.

        Raises:
            UserError: the image cannot be read or decoded, or the attention of the model does not tell.
        """
        predictor = self._any_prepared().predictor
        seen = self._input(image)
        try:
            layout = layout_of(self.checkpoint, predictor.model)
        except ModelError as error:
            raise UserError(f"no attention rollout: {error}") from error
        patches = torch.from_numpy(self._patches([seen])[0]).to(predictor.batches.device)
        attention = see(predictor.model, patches, layout).attention
        if isinstance(attention, str):
            raise UserError(f"no attention rollout: {attention}")
        return attention.rollout.numpy()

    # ---- images -------------------------------------------------------------------------------------------

    @property
    def _decoding(self) -> DecodeSettings:
        return DecodeSettings(
            preprocessing=self.preprocessing,
            image_size=self.config.image_size,
            patch_size=self.config.patch_size,
        )

    def _input(self, image: GivenImage) -> ModelInput:
        """Return what the model sees of an image.

        Raises:
            UserError: the image cannot be read or decoded.
        """
        name = str(image) if isinstance(image, str | Path) else "the image"
        with naming_refusals(name):
            return self._decoded(image)

    def _decoded(self, image: GivenImage) -> ModelInput:
        """Return what the model sees of an image.

        Raises:
            UserError: the image cannot be read, or is none of what can be given.
            DecodeError: the image cannot be decoded.
        """
        settings = self._decoding
        if isinstance(image, str | Path):
            found = find_image(str(image), self.storage_options)
            return decode_input(found.name, read_image(found, settings.limits.max_bytes), settings)
        if isinstance(image, bytes):
            return decode_input("the image", image, settings)
        if isinstance(image, np.ndarray):
            image = _from_array(image)
        if not isinstance(image, Image.Image):
            raise UserError(
                f"{type(image).__name__} is no image: give a path, bytes, a Pillow image or a uint8 array"
            )
        return crop_input("the image", open_image(image, settings), settings)

    def _patches(self, inputs: list[ModelInput]) -> np.ndarray:
        return np.stack([patchify(seen.pixels, self.config.patch_size) for seen in inputs])

    def _normalised(self, image: GivenImage) -> torch.Tensor:
        """Return (1, 3, H, W)."""
        pixels = torch.from_numpy(self.pixels(image)).float() / 255
        preprocessing = self.preprocessing
        normal = (pixels - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
        return normal.permute(2, 0, 1)[None].contiguous()

    # ---- predictions --------------------------------------------------------------------------------------

    def _rows(self, images: Sequence[GivenImage], labeler: LocalLabeler) -> list[Row]:
        rows: list[Row] = []
        for begin in range(0, len(images), UNIT_ROWS):
            unit = self._unit(images[begin : begin + UNIT_ROWS])
            table = labeler.rows(unit).drop_columns([*PLACE, "embedding"])
            rows += table.to_pylist()
        return rows

    def _unit(self, images: Sequence[GivenImage]) -> Unit:
        """Return images as a decoded unit of a run; one that cannot be decoded has an error."""
        inputs: list[ModelInput] = []
        samples = []
        for index, image in enumerate(images):
            sample: dict[str, Any] = {"index": index, "sidecars": []}
            try:
                seen = self._decoded(image)
                inputs.append(seen)
                sample |= {"width": seen.width, "height": seen.height}
            except DecodeError as refusal:
                sample |= {"error": refusal.code, "error_detail": str(refusal)[:MAX_DETAIL]}
            samples.append(sample)
        schema = pa.schema([*SAMPLE, ("width", pa.int32()), ("height", pa.int32())])
        return Unit(
            shard_uri="",
            shard_name="",
            number=0,
            last=True,
            next_offset=0,
            next_index=len(samples),
            bytes_read=0,
            samples=pa.Table.from_pylist(samples, schema=schema),
            payload=self._patches(inputs) if inputs else np.empty(0, np.uint8),
        )

    def _asking(self, top_k: int = 5, threshold: float | None = None) -> LabelRequest:
        return LabelRequest(
            command="label",
            sources=(),
            output="",
            model=self.name,
            top_k=top_k,
            threshold=threshold,
            precision=self.precision,
            device=self.device,
        )

    def _any_prepared(self) -> LocalLabeler:
        return self._labeler or self._prepared(self._asking())

    def _prepared(self, request: LabelRequest) -> LocalLabeler:
        """Return the labeler of a request: the one before, where that was asked for the same."""
        if self._labeler is None or request != self._request:
            asked = LabelRequest(**vars(request) | {"embedding": "float32"})
            self._labeler = LocalLabeler(asked, self.checkpoint)
            self._request = request
        return self._labeler


def _one_or_all(image: Any, of_all: Callable[[Sequence[GivenImage]], Any]) -> Any:
    """Return what a function gives for a list of images, or its first part for an image alone."""
    if isinstance(image, list | tuple):
        return of_all(image)
    return of_all([image])[0]


def _from_array(array: np.ndarray) -> Image.Image:
    """Return an array as an image.

    Raises:
        UserError: it has another type or shape.
    """
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise UserError(
            f"an array of {array.dtype} {array.shape} is no image: give uint8 (h, w), (h, w, 3) or (h, w, 4)"
        )
    return Image.fromarray(array)
