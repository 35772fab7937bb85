"""Run the commands of the pages: with a store, a hub and a cluster on loopback, and small models.

A command stands as it is on its page. What it names is made here; trainings get further options that make
them small. The README, docs/python.md and docs/using-predictions.md have tests of their own. Commands of
Kubernetes, Docker, Slurm and `ray up` need what is not here: tests/deploy looks at their files.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import timm

from tests.faults.servers import BUCKET, moto, served
from tests.support.builders import photo, write_tar
from tests.support.dual_encoders import randomise, save_clip, save_open_clip, save_siglip, save_vit
from tests.support.hub import hub
from tests.support.ray_cluster import RayCluster, ray_cluster
from tests.support.report_runs import Made, by_number, make_run
from tests.test_page_commands import Line, lines_of
from wordsworth import open_run
from wordsworth.pipeline.storage.filesystem import open_filesystem

pytestmark = [pytest.mark.ray, pytest.mark.long]

ROOT = Path(__file__).parents[1]
CLASSES = ("cat", "dog")
WORDNET = ("n02123045", "n02099601")  # folders of ImageNet
TIMM = "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"
TIMEOUT_S = 400  # of a command
SMALL = ["--epochs", "1", "--batch-size", "4", "--warmup", "0"]
# Words of the trainings, and what two cores can do in their place.
SMALLER = {"8": "1", "384": "32", "10": "1"}  # workers, pixels, epochs between probes
# Exit codes of commands that ask for a failure: the two runs have half of their labels in common.
FAILS = {"--fail-if-flips-over": 3, "--fail-if-accuracy-drops": 3}


def images(folder: Path, classes: Sequence[str] = CLASSES, count: int = 4) -> Path:
    """Write loose images in folders of two classes, each with its class beside it."""
    for number in range(count):
        path = folder / classes[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))
        path.with_suffix(".cls").write_text(str(number % 2))
    return folder


def shards(folder: Path, count: int = 2, of_each: int = 8) -> Path:
    """Write tars whose images have a class."""
    for shard in range(count):
        members = {}
        for number in range(of_each):
            members[f"{shard}-{number}.jpg"] = photo(shard * of_each + number)
            members[f"{shard}-{number}.cls"] = str(number % 2).encode()
        write_tar(folder / f"{shard}.tar", members)
    return folder


@pytest.fixture(scope="module")
def store():
    """Serve an object store for this module."""
    yield from served(moto)


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory) -> Iterator[Path]:
    """A working folder with what the pages name, on its disk, in the store and at the hub."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    images(folder / "photos")
    images(folder / "val", WORDNET)
    images(folder / "labelled")
    images(folder / "more-photos")
    (folder / "photo.jpg").write_bytes(photo(1))
    (folder / "classes.txt").write_text("cat\ndog\n")
    shards(folder / "SOURCE")
    fs, _ = open_filesystem(f"s3://{BUCKET}", store.direct)
    for bucket in ("bucket", "open-images", "mine"):
        fs.mkdir(bucket)
    for name in ("train", "val", "all", "labelled"):
        fs.put(f"{shards(folder / 'upload' / name, of_each=16)}/", f"bucket/{name}/", recursive=True)
    fs.put(f"{images(folder / 'upload' / 'mine')}/", "bucket/mine/", recursive=True)
    fs.put(f"{images(folder / 'upload' / 'photos')}/", "bucket/photos/", recursive=True)
    fs.put(f"{shards(folder / 'upload' / 'open')}/", "open-images/train/", recursive=True, ACL="public-read")
    fs.pipe_file("bucket/other.png", photo(2, kind="PNG"))
    at_hub = {
        name: folder / "hub" / name
        for name in (
            TIMM,
            "google/vit-base-patch16-224",
            "openai/clip-vit-base-patch32",
            "google/siglip-base-patch16-224",
            "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        )
    }
    for path in at_hub.values():
        path.mkdir(parents=True)
    timm.models.save_for_hf(randomise(timm.create_model("vit_base_patch16_224")), at_hub[TIMM])
    save_vit(at_hub["google/vit-base-patch16-224"])
    save_clip(at_hub["openai/clip-vit-base-patch32"])
    save_siglip(at_hub["google/siglip-base-patch16-224"])
    save_open_clip(at_hub["laion/CLIP-ViT-B-32-laion2B-s34B-b79K"])
    keys = {"AWS_ACCESS_KEY_ID": store.options["key"], "AWS_SECRET_ACCESS_KEY": store.options["secret"]}
    lines = ["[work]", *(f"{name.lower()} = {value}" for name, value in keys.items())]
    (folder / "aws").write_text("\n".join(lines))
    with hub(at_hub) as (endpoint, _), pytest.MonkeyPatch.context() as patch:
        environment = keys | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.port}",
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "aws"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "hub-cache"),
            "HF_HUB_DISABLE_XET": "1",
            "RAY_AUTH_MODE": "token",
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        yield folder


def ask(folder: Path, line: Line, named: dict[str, list[str]], expected: int = 0) -> str:
    """Give a command of a page, and return what it prints.

    Args:
        named: words of the page and what stands here in their place.
    """
    return shell(folder, [word for asked in line.words for word in named.get(asked, [asked])], expected)


def shell(folder: Path, words: Sequence[str], expected: int = 0) -> str:
    """Run a command in the folder, and return what it prints."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == expected, f"{words}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def lines_on(page: str, program: str = "wordsworth") -> list[Line]:
    return [line for line in lines_of(program) if line.page == page]


def test_report_md(folder, small_model):
    def right(number: int) -> Made:
        return by_number(number)._replace(label_id=number % 2)

    def always_cat(number: int) -> Made:
        return by_number(number)._replace(label_id=0)

    for name, answer in (("OUT", right), ("A", right), ("B", always_cat)):
        make_run(folder / name, folder / "SOURCE", answer=answer, labels=CLASSES, keep=("cls",))
    run = ["--output", "reported", "--model", str(small_model)]
    words = "wordsworth pretrain SOURCE --target cls --output MODEL_DIR --variant Ti/16 --image-size 32"
    shell(folder, [*words.split(), *SMALL])
    for line in lines_on("docs/report.md"):
        named = {"SOURCE...": ["SOURCE"], "...": run, "MODEL": [str(small_model)]}
        if line.words[1] == "label" and "OUT" in line.words:
            shutil.rmtree(folder / "OUT")
        ask(folder, line, named, next((code for word, code in FAILS.items() if word in line.words), 0))
    pages = ("OUT/report.html", "page.html", "reported/report.html", "MODEL_DIR/report.html", "diff.html")
    assert all((folder / page).read_text().startswith("<!") for page in pages)


def test_explain_md(folder):
    (line,) = lines_on("docs/explain.md")
    ask(folder, line, {})
    assert (folder / "figures" / "explain.html").exists() and (folder / "figures" / "filters.png").exists()


def test_models_md(folder):
    first, second, third = lines_on("docs/models.md")
    ask(folder, first, {"labels": ["of-clip"]})
    ask(folder, second, {"labels": ["of-siglip"]})
    rows = open_run(folder / "of-siglip").predictions().to_table().to_pylist()
    assert {row["label"] for row in rows} <= {*CLASSES} and len(rows) == 4
    few_prompts = {"imagenet": ["imagenet", "--prompt", "imagenet-simple"]}  # 7 a class in place of 80
    assert re.search("^images +4 *$", ask(folder, third, few_prompts), re.MULTILINE)


def test_stores_md(folder):
    (line,) = lines_on("docs/stores.md")
    ask(folder, line, {})
    assert open_run("s3://mine/labels").predictions().count_rows() == 16


def test_training_md(folder, small_model):
    for line in lines_on("docs/training.md"):
        if line.words[1] == "submit":
            continue
        words = list(line.words)
        if line.words[1] != "label":
            words += SMALL if "--image-size" in words else [*SMALL, "--image-size", "32"]
        if line.words[1] == "pretrain" and "--target" not in words:
            words += ["--target", "cls"]
        # The page's model of a masked autoencoder would be that of its first command.
        place = {"s3://bucket/model": ["s3://bucket/mae"]} if "mae" in words else {}
        place["MODEL"] = [str(small_model)]
        ask(folder, line._replace(words=tuple(words)), {name: [to] for name, to in SMALLER.items()} | place)
    fs, _ = open_filesystem("s3://bucket", {})
    assert all(fs.exists(f"bucket/{name}/config.json") for name in ("model", "tuned", "mae"))
    assert (folder / "model" / "config.json").exists()


@pytest.fixture
def cluster(folder) -> Iterator[RayCluster]:
    """A cluster of two nodes with the labels of the page, whose nodes have the package as it is installed."""
    fs, _ = open_filesystem("s3://bucket", {})
    fs.put(f"{shards(folder / 'upload' / 'shards', count=1)}/", "bucket/shards/", recursive=True)
    size = {"num_cpus": 4, "memory": 3 << 30}
    head, node = size | {"labels": "pool=decode"}, size | {"labels": "pool=gpu"}
    nodes = ray_cluster([node], head=head, env={"PYTHONPATH": ""})
    with nodes as found, pytest.MonkeyPatch.context() as patch:
        for name, value in (found.env | {"HOME": str(folder)}).items():  # where Ray would keep a token
            patch.setenv(name, value)
        yield found


def test_cluster_md(folder, cluster):
    for name in ("wordsworth", "jobs", "pipeline", "vit_model"):  # as an installation has them
        inside = "" if name == "wordsworth" else name
        shutil.copytree(ROOT / name, folder / "site-packages" / "wordsworth" / inside, dirs_exist_ok=True)
    lines = [*lines_on("docs/cluster.md"), *lines_on("docs/cluster.md", "ray")]
    for line in lines:
        if line.words[:2] in (("ray", "up"), ("ray", "attach"), ("ray", "down")):  # machines of a cloud
            continue
        output = f"s3://bucket/of-line-{line.number}"
        run = ["s3://bucket/shards/", "--output", output, "--model", "timm:vit_base_patch16_224"]
        named = {
            "http://HEAD:8265": [cluster.jobs],
            "http://127.0.0.1:8265": [cluster.jobs],
            "HEAD:6379": [cluster.address],
            "auto": [cluster.address],
            "s3://BUCKET/shards/": ["s3://bucket/shards/"],
            "s3://bucket/labels": [output],
            "s3://BUCKET/labels": [output],
            "CHECKOUT": [str(ROOT)],
            ".": [str(folder / "photos")],  # a working folder of a user's own
            "GPU=8,CPU=64": ["CPU=8"],
            "...": [run[-1]] if "--model" in line.words else run,
        }
        words = [word.replace("SITE-PACKAGES", str(folder / "site-packages")) for word in line.words]
        said = ask(folder, line._replace(words=tuple(words)), named)
        if "--kuberay" in line.words:
            assert "kind: RayJob" in said
        elif "get-auth-token" in line.words:
            assert len(said.split()[-1]) == 64
        else:
            assert open_run(output).predictions().count_rows() == 8, str(line)
