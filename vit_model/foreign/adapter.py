"""Merge an adapter of peft, such as LoRA, into the model that it was trained on.

An adapter folder holds a few small matrices and names its base model. peft computes the merge, on our own
model or on the model of transformers; it is imported inside the functions, because the import takes seconds.
"""

import json
import re
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.hub_folder import CONFIG, read_json
from wordsworth.vit_model.weights import State, check_weights, first_line, load_weights

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_FILES = (ADAPTER_CONFIG, *ADAPTER_WEIGHTS)
MERGED_KINDS = ("LORA", "LOHA", "LOKR", "IA3")
PREFIX = "base_model.model."  # of the names in an adapter
# Fields of an adapter's config that would make peft import a module of that name, or look for the base model.
DROPPED_FIELDS = ("megatron_core", "auto_mapping", "base_model_name_or_path", "revision")
# An adapter's tensors belong to a module of this name.
ADAPTED = re.compile(r"(.+)\.(lora_\w+|hada_\w+|lokr_\w+|ia3_l)(\.weight)?")
# transformers 5 renamed the modules of its ViTs. An adapter has the names of the version that trained it.
RENAMED_IN_5 = {
    r"\bencoder\.layer\.": "layers.",
    r"\battention\.attention\.query\b": "attention.q_proj",
    r"\battention\.attention\.key\b": "attention.k_proj",
    r"\battention\.attention\.value\b": "attention.v_proj",
    r"\battention\.output\.dense\b": "attention.o_proj",
    r"\bintermediate\.dense\b": "mlp.fc1",
    r"(\blayers\.\d+\.)output\.dense\b": r"\1mlp.fc2",
}


def base_of(adapter: Path) -> str | None:
    """Return the name of an adapter's base model, as its config has it, or None."""
    return read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path") or None


def is_of_transformers(folder: Path) -> bool:
    """Return whether a folder holds a model of transformers."""
    return (folder / CONFIG).is_file() and "model_type" in read_json(folder / CONFIG)


def merge(adapter: Path, base: Checkpoint) -> Checkpoint:
    """Return a model of ours with an adapter merged into it. The head's classes are the adapter's.

    Raises:
        ModelError: peft is missing, or the adapter is of another kind or of another model.
    """
    state = _weights(adapter)
    head = state.get(f"{PREFIX}head.weight")
    if head is not None and head.shape[0] != base.config.num_classes:
        base = base.with_head(head.shape[0])
    own = {name: tensor.clone() for name, tensor in base.state.items()}  # peft changes its model in place
    merged = _merged(adapter, state, replace(base, state=own).model())
    tensors = {name: tensor.detach() for name, tensor in merged.state_dict().items()}
    return replace(base, state=check_weights(base.config, tensors, adapter))


def merge_transformers(adapter: Path, base: Path, merged: Path) -> None:
    """Write the folder of a transformers model with an adapter merged into it.

    Args:
        adapter: the folder of the adapter.
        base: the folder of the base model.
        merged: the folder to write.

    Raises:
        ModelError: peft or transformers is missing, or the adapter is of another kind or of another model.
    """
    try:
        from transformers import AutoModel, AutoModelForImageClassification
    except ImportError:
        raise _refusal(adapter, "that needs transformers; pip install transformers peft") from None
    state = _weights(adapter)
    head = state.get(f"{PREFIX}classifier.weight")
    about = read_json(base / CONFIG)
    classifies = any("ForImageClassification" in name for name in about.get("architectures") or ())
    classifies |= head is not None
    kind = AutoModelForImageClassification if classifies else AutoModel
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if head is not None and head.shape[0] != len(about.get("id2label") or (0, 1)):
        options |= {"num_labels": head.shape[0], "ignore_mismatched_sizes": True}
    try:
        model = kind.from_pretrained(str(base), **options)
    except Exception as error:  # transformers' loaders have many kinds of errors
        raise ModelError(
            f"{base}, the base model of {adapter}, cannot be read: {first_line(error)}"
        ) from error
    _merged(adapter, state, model).save_pretrained(merged)
    for file in base.glob("*processor_config.json"):
        (merged / file.name).write_bytes(file.read_bytes())


def _merged(adapter: Path, state: State, model: nn.Module) -> nn.Module:
    """Return a module with an adapter merged into it, by peft.

    peft gets a folder of ours with the adapter's tensors, and its config without what would import or fetch.
    """
    about = _config_for(model, state, read_json(adapter / ADAPTER_CONFIG))
    state = {_in_5(name, model): tensor for name, tensor in state.items()}
    kind = about.get("peft_type")
    if kind not in MERGED_KINDS:
        raise _refusal(adapter, f"its kind is {kind!r}; {', '.join(MERGED_KINDS)} can be merged")
    if about.get("megatron_config"):
        raise _refusal(adapter, "it is one of Megatron, which names code to import")
    try:
        from peft import PeftModel
    except ImportError:
        raise _refusal(adapter, "that needs peft; pip install peft") from None
    with tempfile.TemporaryDirectory(prefix="wordsworth-adapter-") as scratch, warnings.catch_warnings():
        # peft warns of tensors that are missing; they are counted below.
        warnings.simplefilter("ignore")
        plain = {name: value for name, value in about.items() if name not in DROPPED_FIELDS}
        Path(scratch, ADAPTER_CONFIG).write_text(json.dumps(plain), encoding="utf-8")
        safetensors.torch.save_file(state, Path(scratch, ADAPTER_WEIGHTS[0]))
        try:
            wrapped = PeftModel.from_pretrained(model, scratch, torch_device="cpu")
            _check_taken(adapter, state, wrapped)
            return wrapped.merge_and_unload()
        except ModelError:
            raise
        except Exception as error:  # peft's loaders have many kinds of errors
            raise _refusal(adapter, f"it does not fit this base model: {first_line(error)}") from error


def _config_for(model: nn.Module, state: State, about: dict[str, Any]) -> dict[str, Any]:
    """Return an adapter's config with the names of modules that a model has, one by one."""
    modules = []
    for name in state:
        found = ADAPTED.fullmatch(name)
        if found:
            modules.append(_in_5(found[1], model).removeprefix(PREFIX))
    about = dict(about)
    if modules:
        about["target_modules"] = sorted(set(modules))
    for patterns in ("rank_pattern", "alpha_pattern"):
        renamed = {_in_5(name, model): value for name, value in (about.get(patterns) or {}).items()}
        about[patterns] = renamed
    return about


def _in_5(name: str, model: nn.Module) -> str:
    """Return the name in transformers 5 of a part of a model, if the model has that version's names."""
    if not any(re.search(r"\blayers\.0\.attention\.q_proj$", module) for module, _ in model.named_modules()):
        return name
    for old, new in RENAMED_IN_5.items():
        name = re.sub(old, new, name)
    return name


def _check_taken(adapter: Path, state: State, wrapped: nn.Module) -> None:
    """Raise ModelError where a tensor of the adapter has no place in the model, or the model lacks one."""
    from peft import get_peft_model_state_dict

    taken = get_peft_model_state_dict(wrapped)
    for name, tensor in state.items():
        if name not in taken or not torch.equal(taken[name].float(), tensor.float()):
            raise _refusal(adapter, f"it does not fit this base model: {name} has no place there")
    absent = [name for name in taken if name not in state]
    if absent:
        raise _refusal(adapter, f"it lacks {absent[0]}, which this base model needs")


def _weights(adapter: Path) -> State:
    for name in ADAPTER_WEIGHTS:
        if (adapter / name).is_file():
            return {key: tensor.contiguous() for key, tensor in load_weights(adapter / name).items()}
    raise ModelError(f"{adapter} is an adapter without weights: one of {', '.join(ADAPTER_WEIGHTS)}")


def _refusal(adapter: Path, reason: str) -> ModelError:
    base = base_of(adapter) or "an unnamed base model"
    return ModelError(f"{adapter} is an adapter for {base} and was not merged: {reason}")
