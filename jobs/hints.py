"""Say what to type in place of options that people know from other tools and that `wordsworth` has not."""

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

HINTS = {
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
    "--topk": "--top-k",
    "--batch": "--batch-size",
    "--bs": "--batch-size",
    "--recursive": "folders are read with all folders below them",
    "-r": "folders are read with all folders below them",
    "--labels-list": CLASSES,
    "--text": CLASSES,
}


def hint(command: str, option: str) -> str | None:
    """Return a sentence for an unknown option that is known from other tools; None for any other.

    Args:
        command: the command that was called.
        option: as it was typed, with its hyphens, perhaps with =VALUE.
    """
    sentence = HINTS.get(option.partition("=")[0].replace("_", "-"))
    return sentence.format(command=command) if sentence else None
