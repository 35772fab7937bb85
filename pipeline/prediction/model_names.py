"""Understand the names that people give to models: with a prefix or without, in several spellings."""

import difflib
import re
from collections.abc import Callable
from pathlib import Path

from wordsworth.pipeline.errors import UserError
from wordsworth.vit_model.config import nearest
from wordsworth.vit_model.file_kinds import WEIGHT_SUFFIXES
from wordsworth.vit_model.variants import PATCH_SIZES, VARIANTS

Note = Callable[[str], None]  # gets what the user should know, a line at a time

CONFIGS = ("config.json", "open_clip_config.json")  # one of them makes a folder a model
# A page of the hub, or of one of its files: OWNER/NAME/tree/REVISION.
HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<name>[\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|blob|resolve|commit)/(?P<revision>[\w.-]+)(?:/.*)?)?/?(?:\?.*)?"
)
REPOSITORY = re.compile(r"(?P<owner>[\w.-]+)/[\w.-]+(@[\w./+-]+)?")
VARIANT = re.compile(r"(?:R\d*\+)?(?P<size>[A-Za-z]+\d*m?)/\d+")
# As papers, OpenAI, OpenCLIP and torchvision write a variant: ViT-B/32, ViT-B-32, vit_b_32, ViT_B_32, b/32.
SPELLED_VARIANT = re.compile(
    r"(?:vit[-_ ]?)?(?P<size>ti|s|m|b|l|h|so400m|g)[-_ /]?(?P<patch>\d+)(?:[@-]336(?:px)?)?(?:-quickgelu)?",
    re.IGNORECASE,
)
# Names of Meta's models in torch.hub.
TORCH_HUB = re.compile(
    r"(?P<kind>dino|dinov2|dinov3)_vit(?P<size>[sblg])(?P<patch>\d+)(?P<reg>_reg)?(?P<lc>_lc)?"
)
WORDS = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant", "G": "gigantic"}
LIKE = 0.75  # a name that is less like a known one is no misspelling of it; 1 is the same


def understood(model: str, *, has_weights: bool = False, note: Note = print) -> str:
    """Return the name as `load_model` takes it. What is on this disk always wins.

    Args:
        model: what --model says.
        has_weights: whether --weights names a file, so that an architecture alone is enough.
        note: gets a line where a name is taken for another spelling.

    Raises:
        UserError: the name has several meanings, or none. The message has the spellings to choose from.
    """
    page = HUB_PAGE.fullmatch(model.removeprefix("hf:"))
    if page:
        revision = f"@{page['revision']}" if page["revision"] else ""
        return f"hf:{page['name']}{revision}"
    hub_name = re.fullmatch(r"(?:timm:)?hf[-_]hub:(.+)", model)  # timm's and OpenCLIP's spelling
    if hub_name:
        return f"hf:{hub_name[1]}"
    if model in ("timm:", "hf:") or re.fullmatch(r"hf:[\w.-]+", model):
        named = "timm:vit_base_patch16_224" if model == "timm:" else "hf:OWNER/NAME"
        raise UserError(f"--model {model} is no whole name: give one such as {named}", exit_code=2)
    if re.match(r"(timm|hf):(?!//)", model) or "://" in model:
        return model
    if is_variant(model):
        return f"./{model}" if _is_here(model) else model
    if Path(model).exists() or model.endswith(WEIGHT_SUFFIXES):
        return model
    return _without_prefix(model, has_weights, note)


def is_variant(model: str) -> bool:
    """Tell whether `model` is written like a variant: "S/16", or "R50+S/16" with a stem."""
    written = VARIANT.fullmatch(model)
    return written is not None and written["size"] in VARIANTS


def refuse_bare_variant(model: str, *, has_weights: bool, allow_random: bool) -> None:
    """Refuse an architecture without weights, before anything is loaded.

    Raises:
        UserError: the model is a variant, and nothing says which weights it has.
    """
    if has_weights or allow_random or not is_variant(model) or _is_here(model):
        return
    raise UserError(
        f"--model {model} names an architecture but no weights: "
        "add --weights FILE, or use a folder, timm:NAME or hf:OWNER/NAME "
        "(--allow-random-weights tries the pipeline without)",
        exit_code=2,
    )


def unknown_model(model: str, hint: str) -> UserError:
    """Return the error for a name that means nothing."""
    variants = ", ".join(f"{name}/16" for name in VARIANTS)
    return UserError(
        f"unknown model {model}: {hint}; known are model folders, "
        f"files of weights, timm:NAME, hf:OWNER/NAME, and variants ({variants}, ...)",
        exit_code=2,
    )


def _is_here(model: str) -> bool:
    path = Path(model)
    return path.is_file() or _is_model_folder(path)


def _is_model_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in CONFIGS)


def _without_prefix(model: str, has_weights: bool, note: Note) -> str:
    """Understand a name that is neither on this disk nor says where its model is."""
    variant = _spelled_variant(model)
    if variant and (has_weights or variant.lower() == model.lower()):
        return _taken_as(variant, model, note)
    if variant:
        raise UserError(_meanings_of_variant(model, variant), exit_code=2)
    torch_hub = TORCH_HUB.fullmatch(model)
    if torch_hub:
        raise UserError(_meanings_in_torch_hub(model, torch_hub), exit_code=2)
    repository = REPOSITORY.fullmatch(model)
    if repository and not VARIANT.fullmatch(model):
        return _repository(model, repository["owner"], note)
    return _timm_name(model, note)


def _taken_as(name: str, model: str, note: Note) -> str:
    note(f"{model} is no file or folder here: taken as --model {name}")
    return name


def _repository(model: str, owner: str, note: Note) -> str:
    """Take OWNER/NAME as a repository of the hub, unless OWNER is a folder here: then it is a wrong path."""
    folder = Path(owner)
    if not folder.is_dir():
        return _taken_as(f"hf:{model}", model, note)
    names = [
        path.name for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES or _is_model_folder(path)
    ]
    like = f"; nearest here: {owner}/{nearest(model.partition('/')[2], names)}" if names else ""
    raise unknown_model(model, f"the folder {owner} has no such model{like}; of the hub it is hf:{model}")


def _timm_name(model: str, note: Note) -> str:
    import timm

    known = [*timm.list_models(), *timm.list_pretrained()]
    entry = model.partition("@")[0].partition(".")[0]
    if re.fullmatch(r"[\w.]+(@[\w./-]+)?", model) and timm.is_model(entry):
        return _taken_as(f"timm:{model}", model, note)
    like = nearest(model.replace("-", "_"), known)
    hint = "no such file or folder"
    if _likeness(model.replace("-", "_"), like) >= LIKE:
        hint += f"; nearest: timm:{like}"
    raise unknown_model(model, hint)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()


# ---- names with several meanings --------------------------------------------------------------------------


def _spelled_variant(model: str) -> str | None:
    """Return the variant that another spelling means, or None."""
    spelled = SPELLED_VARIANT.fullmatch(model)
    if spelled is None or int(spelled["patch"]) not in PATCH_SIZES:
        return None
    size = spelled["size"]
    if size not in VARIANTS:
        sizes = [name for name in VARIANTS if name.lower() == size.lower()]
        if len(sizes) != 1:
            return None
        size = sizes[0]
    return f"{size}/{spelled['patch']}"


def _meanings_of_variant(model: str, variant: str) -> str:
    """Say which models are called so: the name is an architecture, and there are several weights of it."""
    import timm

    size, patch = variant.split("/")
    word = WORDS.get(size, "")
    known = timm.list_pretrained()
    meanings = [f"--model {variant} --weights FILE with weights of your own"]
    pixels = 336 if "336" in model else 224
    clip = f"vit_{word}_patch{patch}_clip_quickgelu_{pixels}.openai"
    if clip in known:
        meanings.append(f"timm:{clip} is OpenAI's CLIP")
    plain = f"vit_{word}_patch{patch}_224"
    if any(name.startswith(f"{plain}.") for name in known):
        meanings.append(f"timm:{plain} labels ImageNet's classes")
    return f"--model {model} names an architecture but no weights: {'; '.join(meanings)}"


def _meanings_in_torch_hub(model: str, named: re.Match[str]) -> str:
    """Say how the models of Meta's torch.hub are called in timm and on the hub."""
    import timm

    word = WORDS[named["size"] if named["size"] == "g" else named["size"].upper()]
    if named["lc"]:
        same = f"hf:facebook/dinov2-{word}-imagenet1k-1-layer"
        return f"--model {model} is a name of torch.hub; the same weights: {same}"
    registers = "_reg4" if named["reg"] else ""
    if named["kind"] == "dino":
        pattern = f"vit_{word}_patch{named['patch']}_224.dino"
    else:
        pattern = f"vit_{word}_patch{named['patch']}{registers}_{named['kind']}.*"
    found = timm.list_pretrained(pattern)
    if not found:
        raise unknown_model(model, "no such file or folder, and timm has no such model")
    same = " or ".join(f"timm:{name}" for name in found)
    return f"--model {model} is a name of torch.hub; the same weights: {same}"
