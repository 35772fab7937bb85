"""Write down what a training was asked for, and check that a training is continued with the same."""

import json
from dataclasses import asdict, fields
from typing import Any

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.filesystem import open_filesystem
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.survey import Survey

RUN = "_train"  # folder in the output: checkpoints, and the settings
SETTINGS = "settings.json"
SNAPSHOT = (
    "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints: there is something to continue
)
SHOWN = 3  # settings that a message names

Settings = dict[str, Any]  # JSON of the request's fields that decide what is learnt, by name


def frozen_settings(request: TrainRequest, train_data: Survey, val_data: Survey | None) -> Settings:
    """Return all that decides what is learnt: most fields of the request, and digests of model and data."""
    settings: Settings = {}
    for field in fields(request):
        if field.metadata.get("resume", True):
            settings[field.name] = _as_json(getattr(request, field.name))
    settings["start"] = request.start.fingerprint() if request.start else None
    settings["data"] = train_data.digest
    settings["val_data"] = val_data.digest if val_data else None
    return settings


def _as_json(value: Any) -> Any:
    """Return a value as it comes back from a JSON file: tuples become lists, records become objects."""
    return json.loads(json.dumps(value, default=_as_dict))


def _as_dict(record: Any) -> dict[str, Any]:
    if hasattr(record, "to_dict"):
        return record.to_dict()
    return asdict(record)


def begun_settings(request: TrainRequest) -> Settings | None:
    """Return the settings of the unfinished training that the output holds; None if it holds none."""
    fs, path = open_filesystem(request.output, request.storage_options)
    folder = f"{path.rstrip('/')}/{RUN}"
    if not fs.exists(f"{folder}/{SNAPSHOT}"):
        return None
    return json.loads(fs.cat_file(f"{folder}/{SETTINGS}"))


def write_settings(request: TrainRequest, settings: Settings) -> None:
    """Write the settings into the output, or find them there.

    Raises:
        UserError: the output holds an unfinished training with other settings. The message names them.
    """
    before = begun_settings(request)
    if before is None:
        fs, path = open_filesystem(request.output, request.storage_options)
        folder = f"{path.rstrip('/')}/{RUN}"
        fs.makedirs(folder, exist_ok=True)
        fs.pipe_file(f"{folder}/{SETTINGS}", json.dumps(settings, indent=1).encode())
        return
    different = [name for name in settings if settings[name] != before.get(name)]
    if different:
        parts = [f"{name} {before.get(name)!r} there, {settings[name]!r} here" for name in different[:SHOWN]]
        raise UserError(
            f"{request.output} holds an unfinished training with other settings ({', '.join(parts)}): "
            "give the same to continue it, or choose another --output"
        )
