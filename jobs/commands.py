"""List the commands of `wordsworth` in the order in which people need them, with an example each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """Describe one command.

    Attributes:
        group: heading under which it stands in --help.
        help: what it does, one line.
        example: a command line, as one would type it.
    """

    group: str
    help: str
    example: str


LABEL, LOOK, TRAIN, MORE = "Label", "Look at the results", "Train", "More"

COMMANDS = {
    "label": Command(
        LABEL,
        "Label every image of the sources, each exactly once, into Parquet.",
        "wordsworth label s3://bucket/shards/ -o s3://bucket/labels -m timm:vit_base_patch16_224",
    ),
    "embed": Command(
        LABEL,
        "Embed every image of the sources, each exactly once, into Parquet.",
        "wordsworth embed photos/ -o vectors/ -m timm:vit_small_patch16_224 --normalize",
    ),
    "plan": Command(
        LABEL,
        "Say what labelling would cost: images/s by stage, bottleneck, hours.",
        "wordsworth plan s3://bucket/shards/ -m timm:vit_base_patch16_224 --cores 64 --gpus 4",
    ),
    "verify": Command(
        LABEL,
        "Prove that every input sample of a run has exactly one row.",
        "wordsworth verify s3://bucket/labels --source",
    ),
    "compact": Command(
        LABEL,
        "Write a finished run again, in a new folder of large files.",
        "wordsworth compact s3://bucket/labels -o s3://bucket/labels-large",
    ),
    "report": Command(
        LOOK,
        "Write one page that shows what a run found.",
        "wordsworth report labels/",
    ),
    "show": Command(
        LOOK,
        "Show the rows and the images of a run that you ask for.",
        "wordsworth show labels/ --label tabby --limit 20 -o sheet.png",
    ),
    "diff": Command(
        LOOK,
        "Compare two runs over the same images: labels, scores, embeddings.",
        "wordsworth diff labels-old/ labels-new/ -o changes.html --fail-if-flips-over 0.02",
    ),
    "explain": Command(
        LOOK,
        "Draw the paper's figures for a model and images: attention, filters, positions.",
        "wordsworth explain cat.jpg dog.jpg -m timm:vit_base_patch16_224 -o figures/",
    ),
    "evaluate": Command(
        LOOK,
        "Say how often a model is right on images whose class is known.",
        "wordsworth evaluate val/ -m timm:vit_base_patch16_224 --target folder",
    ),
    "pretrain": Command(
        TRAIN,
        "Train a Vision Transformer from scratch with Ray Train.",
        "wordsworth pretrain shards/ -o model/ --variant S/16 --val val.tar",
    ),
    "finetune": Command(
        TRAIN,
        "Train a trained model on, for classes of one's own.",
        "wordsworth finetune shards/ --model timm:vit_small_patch16_224 -o mine/ --epochs 10",
    ),
    "convert": Command(
        TRAIN,
        "Write a model in the form that timm, transformers or Google's code opens.",
        "wordsworth convert model/ -o vit.npz --format npz",
    ),
    "models": Command(
        TRAIN,
        "List the variants: layers, width, heads, parameters, GFLOPs.",
        "wordsworth models",
    ),
    "lint": Command(
        MORE,
        "Say what is wrong with shards, without a model.",
        "wordsworth lint s3://bucket/shards/",
    ),
    "pack": Command(
        MORE,
        "Pack images in class folders into WebDataset shards.",
        "wordsworth pack photos/ -o shards/",
    ),
    "submit": Command(
        MORE,
        "Run one of these commands as a job on a Ray cluster.",
        "wordsworth submit --address http://HEAD:8265 -- label s3://in/ -o s3://out/labels -m s3://models/vit",
    ),
    "demo": Command(
        MORE,
        "The whole story on real handwriting, in a few minutes.",
        "wordsworth demo",
    ),
}
