"""Write down what a training was asked for, and check that a training is continued with the same."""

import json
from dataclasses import asdict, fields
from typing import Any

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.filesystem import open_filesystem
from wordsworth.pipeline.training.probe_images import ProbeImages
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.survey import Survey

RUN = "_train"  # folder in the output: checkpoints, and the settings
SETTINGS = "settings.json"
SNAPSHOT = (
    "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints: there is something to continue
)
PROGRESS = "progress.json"  # in a checkpoint: how far the training was; it makes the checkpoint whole
SHOWN = 3  # settings that a message names
MAX_SHOWN = 60  # characters of a value in it

Settings = dict[str, Any]  # JSON of the request's fields that decide what is learnt, by name


def frozen_settings(
    request: TrainRequest, train_data: Survey, val_data: Survey | None, probe: ProbeImages | None = None
) -> Settings:
    """Return all that decides what is learnt: most fields of the request, and digests of model and data.

    A field that earlier versions did not have stands there only if it is not the default, and the images of
    --probe only where there are some.
    """
    settings: Settings = {}
    for field in fields(request):
        value = getattr(request, field.name)
        is_unsaid = field.metadata.get("added") and value == field.default
        if field.metadata.get("resume", True) and not is_unsaid:
            settings[field.name] = _as_json(value)
    settings["start"] = request.start.fingerprint() if request.start else None
    settings["data"] = train_data.digest
    settings["val_data"] = val_data.digest if val_data else None
    if probe:
        settings["probe_data"] = probe.digest
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
    if not fs.exists(f"{path.rstrip('/')}/{RUN}/{SNAPSHOT}"):
        return None
    return written_settings(request)


def written_settings(request: TrainRequest) -> Settings | None:
    """Return the settings of the training that the output holds, finished or not; None if it holds none."""
    fs, path = open_filesystem(request.output, request.storage_options)
    file = f"{path.rstrip('/')}/{RUN}/{SETTINGS}"
    return json.loads(fs.cat_file(file)) if fs.exists(file) else None


def write_settings(request: TrainRequest, settings: Settings) -> None:
    """Write the settings into the output, or find them there.

    Raises:
        UserError: the output holds an unfinished training with other settings. The message names them.
    """
    before = begun_settings(request)
    if before is None:
        put_settings(request, settings)
    else:
        check_same(request, settings, before, "an unfinished training")


def put_settings(request: TrainRequest, settings: Settings) -> None:
    """Write the settings into the output, whatever is there."""
    fs, path = open_filesystem(request.output, request.storage_options)
    folder = f"{path.rstrip('/')}/{RUN}"
    fs.makedirs(folder, exist_ok=True)
    fs.pipe_file(f"{folder}/{SETTINGS}", json.dumps(settings, indent=1).encode())


def check_same(request: TrainRequest, settings: Settings, before: Settings, what: str) -> None:
    """Check that a training is continued with the settings that it was begun with.

    Args:
        request: names the output.
        settings: of the request.
        before: of the training that the output holds.
        what: that training, in the message.

    Raises:
        UserError: names the settings that differ.
    """
    names = list(dict.fromkeys([*settings, *before]))
    different = [name for name in names if settings.get(name) != before.get(name)]
    if different:
        parts = [f"{name} {_shown(before, name)} there, {_shown(settings, name)} here" for name in different]
        raise UserError(
            f"{request.output} holds {what} with other settings ({', '.join(parts[:SHOWN])}): "
            "give the same to continue it, or choose another --output"
        )


def _shown(settings: Settings, name: str) -> str:
    """Return a setting as a message shows it; one that is not written is the default."""
    if name not in settings:
        return "not given"
    text = repr(settings[name])
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
