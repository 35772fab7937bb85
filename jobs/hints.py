"""Say what to type in place of options and commands that people know from other tools."""

AGAIN = "the same command again continues by itself"
CORES = "the number of workers follows from the cores; on a cluster --max-actors and --share bound it"
SOURCES = "the sources stand without an option: wordsworth {command} SOURCE..."
DRY = "wordsworth plan says what a run would cost, and writes nothing"
REPLACE = "a run is never overwritten: choose another --output, or remove the folder first"
PARQUET = "rows are Parquet; docs/using-predictions.md turns them into CSV or JSON in one line"
CLASSES = 'classes of your own are --classes "cat,dog" with a CLIP or SigLIP, or a model that `finetune` made'
GPU = "GPUs are taken where there are some: --device cuda insists on one, --device cpu uses none"
DEBUG = "--debug shows the traceback of a failure; --log-format json has a line for every event"
MODEL = "the model is --model: timm:NAME, hf:NAME, a folder or a file"

BROUGHT = "the job brings this package and the files that its command names"
PLANNED = "the command plans what it takes of the cluster: --share, --max-actors and --wait-for behind --"

HINTS = {
    "--working-dir": BROUGHT,
    "--runtime-env": BROUGHT,
    "--runtime-env-json": BROUGHT,
    "--no-wait": "it is --no-follow here",
    "--submission-id": "a job gets its name from its command: the same command again follows it",
    "--entrypoint-num-cpus": PLANNED,
    "--entrypoint-num-gpus": PLANNED,
    "--resume": AGAIN,
    "--continue": AGAIN,
    "--checkpoint": MODEL,
    "--model-name": MODEL,
    "--arch": MODEL,
    "--num-workers": CORES,
    "--workers": CORES,
    "-j": CORES,
    "--processes": CORES,
    "--threads": CORES,
    "--input": SOURCES,
    "-i": SOURCES,
    "--source": SOURCES,
    "--data": SOURCES,
    "--data-dir": SOURCES,
    "--input-dataset": SOURCES,
    "--dry-run": DRY,
    "-n": DRY,
    "--overwrite": REPLACE,
    "--force": REPLACE,
    "-f": REPLACE,
    "--output-format": PARQUET,
    "--csv": PARQUET,
    "--jsonl": PARQUET,
    "--gpu": GPU,
    "--gpus": GPU,
    "--num-gpus": GPU,
    "--cuda": GPU,
    "--verbose": DEBUG,
    "-v": DEBUG,
    "--quiet": "results go to stdout and progress to stderr: 2>/dev/null drops the progress",
    "-q": "results go to stdout and progress to stderr: 2>/dev/null drops the progress",
    "--fp16": "--precision bf16, or fp32: half precision of float16 is not offered",
    "--amp": "--precision bf16, or fp32",
    "--bf16": "--precision bf16",
    "--topk": "it is --top-k here",
    "--learning-rate": "it is --lr here",
    "--wd": "it is --weight-decay here",
    "--num-epochs": "it is --epochs here",
    "--max-epochs": "it is --epochs here",
    "--val-dir": "it is --val here",
    "--num-classes": "the classes follow from --target and --labels",
    "--pretrained": "finetune goes on with a trained model",
    "--output-dir": "it is --output here",
    "--output-folder": "it is --output here",
    "--batch": "it is --batch-size here",
    "--bs": "it is --batch-size here",
    "--recursive": "folders are read with all folders below them",
    "-r": "folders are read with all folders below them",
    "--labels-list": CLASSES,
    "--text": CLASSES,
}

# What an option of other tools is in one command alone.
COMMAND_OPTIONS = {
    ("label", "-k"): "it is --top-k here",
    ("plan", "-k"): "it is --top-k here",
    ("pretrain", "--model"): "--variant names the size; finetune goes on from a model",
    ("pretrain", "-m"): "--variant names the size; finetune goes on from a model",
    ("show", "--top"): "it is --limit here",
    ("show", "--top-k"): "it is --limit here",
    ("show", "-k"): "it is --limit here",
    ("show", "-n"): "it is --limit here",
}

TRAIN = "pretrain trains from scratch, finetune goes on with a trained model"
COMMAND_HINTS = {
    "train": TRAIN,
    "fit": TRAIN,
    "predict": "it is label here",
    "classify": "it is label here",
    "infer": "it is label here",
    "inference": "it is label here",
    "tag": "it is label here",
    "run": "it is label here",
    "resume": AGAIN,
    "encode": "it is embed here",
    "features": "it is embed here",
    "extract": "it is embed here",
    "check": "verify is for runs, lint for sources",
    "validate": "verify counts a run again, evaluate compares its labels with known classes",
    "test": "evaluate says how often a model is right",
    "eval": "it is evaluate here",
    "merge": "it is compact here",
    "export": "convert writes a model in other forms; docs/using-predictions.md has CSV and JSON",
    "estimate": "it is plan here",
    "cost": "it is plan here",
    "view": "show prints rows, report writes a page",
    "query": "it is show here",
    "compare": "it is diff here",
    "-v": "it is wordsworth --version",
    "version": "it is wordsworth --version",
    "status": "wordsworth verify OUT counts what a run has",
    "search": "wordsworth show OUT --nearest KEY finds images that look like one",
    "init": "nothing is set up before: wordsworth label SOURCE -o OUT -m MODEL begins a run",
    "list": "models lists the models' sizes; show lists the rows of a run",
}


def hint(command: str, option: str) -> str | None:
    """Return a sentence for an unknown option that is known from other tools; None for any other.

    Args:
        command: the command that was called.
        option: as it was typed, with its hyphens, perhaps with =VALUE.
    """
    name = option.partition("=")[0].replace("_", "-")
    sentence = COMMAND_OPTIONS.get((command, name)) or HINTS.get(name)
    return sentence.format(command=command) if sentence else None


def command_hint(word: str) -> str | None:
    """Return a sentence for a word or an option in place of a command; None where nothing is known of it."""
    return COMMAND_HINTS.get(word.lower())
