"""Get the weights of timm's models: from the Hugging Face hub, where nearly all are, a folder, or an address.

timm fits the tensors to its model, and opens no file: it gets what our own reader has read.

timm is imported inside the functions, because the import takes seconds.
"""

import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.hub import (
    HubFiles,
    Note,
    fetch,
    reach_seconds,
    split_revision,
    within,
)
from wordsworth.vit_model.weight_bounds import check_model_size, count_numbers
from wordsworth.vit_model.weights import State, first_line, read_content

SAFE_NAME = "model.safetensors"  # timm takes this file where a repository has it
NAME = "pytorch_model.bin"
# Files that timm takes from a folder, in its order; after them any file with one of its endings.
FILES_OF_FOLDER = (
    SAFE_NAME,
    NAME,
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
ENDINGS = (".safetensors", ".pth", ".pth.tar", ".bin")
# The sets of tensors in a file of a training, in timm's order. Its filters choose from any other.
SETS = ("state_dict_ema", "model_ema", "state_dict", "model")


def download_weights(
    name: str, revision: str | None = None, note: Note = print
) -> tuple[State, dict[str, Any]]:
    """Get timm's own weights, changed by timm's code where its model wants them otherwise.

    Args:
        name: timm's name; or hf-hub:OWNER/NAME or local-dir:FOLDER.
        revision: of the repository on the hub.
        note: gets what the user should know.

    Returns:
        The tensors, and their origin as a checkpoint keeps it in `extra`.

    Raises:
        ModelError: no network, a refusal, no such revision, no weights.
    """
    if name.startswith("local-dir:"):
        return _fit(name, _saved_set(read_content(_file_of(Path(name.removeprefix("local-dir:")))))), {}
    if name.startswith("hf-hub:"):
        repository, own_revision = split_revision(name.removeprefix("hf-hub:"))
        return _from_hub(name, repository, revision or own_revision, None, note)
    cfg = _pretrained_cfg(name)
    if cfg.hf_hub_id:
        repository, own_revision = split_revision(cfg.hf_hub_id)
        called = name + (f"@{revision}" if revision else "")
        return _from_hub(called, repository, revision or own_revision, cfg.hf_hub_filename, note)
    if revision:
        raise ModelError(
            f"timm:{name}@{revision}: timm's weights of it are not on the hub, and have no revisions"
        )
    if not cfg.url:
        raise ModelError(f"timm has no weights of {name}: pass a file with --weights FILE")
    return _fit(name, read_content(_from_address(name, cfg.url))), {}


def _from_hub(
    called: str, repository: str, revision: str | None, own_file: str | None, note: Note
) -> tuple[State, dict[str, Any]]:
    """Get weights of a repository on the hub.

    Args:
        called: the model's name, with the revision that was asked for.
        repository: OWNER/NAME.
        revision: of the repository.
        own_file: the file of weights where timm knows its name.
        note: gets what the user should know.
    """
    wanted = HubFiles(
        called=f"timm:{called}",
        repository=repository,
        revision=revision,
        choose=lambda names: _weights_of(names, f"timm:{called.partition('@')[0]}", own_file),
        usual=(own_file or SAFE_NAME,),
        option=f"--weights FOLDER/{own_file or SAFE_NAME}",
    )
    snapshot = fetch(wanted, note)
    [file] = snapshot.files
    name = called if called.startswith("hf-hub:") else called.partition("@")[0]
    return _fit(name, _saved_set(read_content(snapshot.folder / file))), snapshot.provenance()


def _pretrained_cfg(name: str) -> Any:
    import timm

    return timm.get_pretrained_cfg(name)


def _weights_of(names: Sequence[str], where: str, own: str | None) -> list[str]:
    for file in [own] if own else [SAFE_NAME, NAME]:
        if file in names:
            return [file]
    raise ModelError(f"{where}: its repository has neither {SAFE_NAME} nor {NAME}")


def _file_of(folder: Path) -> Path:
    """Return the file of weights that timm takes from a folder. Raises ModelError if there is none."""
    for name in FILES_OF_FOLDER:
        if (folder / name).is_file():
            return folder / name
    for ending in ENDINGS:
        found = sorted(path for path in folder.glob(f"*{ending}") if path.is_file())
        if found:
            return found[0]
    raise ModelError(f"timm:local-dir:{folder} has no weights: {SAFE_NAME} or {NAME}")


def _saved_set(content: Any) -> Any:
    """Return the set of tensors that timm takes from a file, without the prefixes that wrappers leave."""
    from timm.models import clean_state_dict

    if isinstance(content, dict):
        for name in SETS:
            if isinstance(content.get(name), dict):
                content = content[name]
                break
        content = clean_state_dict(content)
    return content


def _fit(name: str, content: Any) -> State:
    """Let timm's code fit what a file holds to its model, and return the tensors under timm's names."""
    import timm

    if not isinstance(content, dict) or not content:
        raise ModelError(f"the weights of timm:{name} are no dictionary of named tensors")
    with torch.device("meta"):
        check_model_size(timm.create_model(name), count_numbers(content), f"timm:{name}")
    # timm opens no file, and reads tensors of its own form even where its address has another one.
    overlay = {"state_dict": content, "source": "", "custom_load": False}
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    except Exception as error:  # tensors of another model: timm's filters have many kinds of errors
        reason = first_line(error)
        raise ModelError(
            f"the weights of timm:{name} cannot be loaded ({reason}); pass a file with --weights FILE"
        ) from error


def _from_address(name: str, address: str | tuple[str, str]) -> Path:
    """Return the file of weights at an address, in torch's cache. Raises ModelError if it cannot be had."""
    from torch.hub import download_url_to_file

    url, cached = _place(address)
    _check_reach(name, address)
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(url, str(cached), progress=False)
        except (OSError, RuntimeError) as error:
            raise ModelError(f"timm:{name}: {url} cannot be downloaded ({first_line(error)})") from error
    return cached


def _place(address: str | tuple[str, str]) -> tuple[str, Path]:
    """Return the URL of an address of timm's, and the path of its file in torch's cache."""
    from torch.hub import get_dir

    url, file = address if isinstance(address, tuple) else (address, "")
    file = file or os.path.basename(urllib.parse.urlparse(url).path)
    return url, Path(get_dir(), "checkpoints", file)


def _check_reach(name: str, address: str | tuple[str, str]) -> None:
    """Check that a server answers: torch's download waits for ever. A file in torch's cache needs no server.

    Raises:
        ModelError: it does not answer in time.
    """
    url, cached = _place(address)
    if cached.exists():
        return
    try:
        within(reach_seconds(), lambda: _ask_head(url))
    except Exception as error:
        raise ModelError(
            f"timm:{name}: {url} cannot be reached ({first_line(error)}). Where there is a network: "
            f"`curl -LO {url}`; bring {cached.name} here and give --weights {cached.name}, "
            f"or put it to {cached}"
        ) from error


def _ask_head(url: str) -> None:
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=reach_seconds()):
            pass
    except urllib.error.HTTPError:
        pass  # the server is there; what it has against the request, the download will say
