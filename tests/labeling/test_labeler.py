"""The whole plan on a local Ray: sources in, exact Parquet out."""

import json
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.support.builders import photo, write_shards, write_tar
from tests.support.labelling import rows, run
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.errors import UserError, root_cause
from wordsworth.pipeline.images.decode import crop_for_evaluation
from wordsworth.pipeline.labeling import dataset
from wordsworth.pipeline.output.frozen_listing import FirstPage
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.verification.verifier import verify
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.model_folder import load_folder

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def model(small_model):
    return load_folder(small_model)


def test_every_sample_of_every_shard_gets_exactly_one_row(tmp_path, model):
    keys = write_shards(tmp_path / "shards", shards=4, images=23)
    summary, watcher = run(tmp_path, model, tmp_path / "shards", keep=("json",), unit_rows=8)
    found = rows(tmp_path)
    assert Counter(row["key"] for row in found) == Counter(keys)
    assert all(
        row["label"] in model.labels and len(row["topk"]) == 5 and row["error"] is None for row in found
    )
    assert all(json.loads(row["json"])["n"] == int(row["key"][-4:]) for row in found)
    assert summary.rows == 92 and summary.files == 12, (
        "23 samples are units of 8, 8 and 7: blocks were merged or split"
    )
    assert sum(receipt.rows for receipt in watcher.receipts) == 92
    report = verify(str(tmp_path / "out"), source=True)
    assert report.ok and report.recounted == 92, report.findings


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"share": 0.01}, "less than one model actor"),
        ({"predict_on": {"pool": "gpu"}}, "no node of this clus"),
    ],
)
def test_a_run_for_which_there_is_no_room_leaves_the_output_as_it_was(tmp_path, model, asked, said):
    write_shards(tmp_path / "shards", shards=1, images=2)
    with pytest.raises(UserError, match=said):
        run(tmp_path, model, tmp_path / "shards", cluster=ClusterRequest(**asked))
    assert not (tmp_path / "out").exists()


def test_an_image_is_found_again_by_one_range_read(tmp_path, model):
    write_shards(tmp_path / "shards", shards=1, images=3)
    run(tmp_path, model, tmp_path / "shards")
    for row in rows(tmp_path):
        data = Path(row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        assert data == photo(int(row["key"][-4:]))


def test_loose_images_are_keyed_by_their_path_under_the_prefix(tmp_path, model):
    for number in range(7):
        place = tmp_path / "photos" / f"album{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.JPG").write_bytes(photo(number))
    (tmp_path / "photos" / "notes.md").write_text("not an image")
    summary, watcher = run(tmp_path, model, tmp_path / "photos")
    assert sorted(row["key"] for row in rows(tmp_path)) == sorted(f"album{n % 2}/{n}.JPG" for n in range(7))
    assert any("1 .md" in note for note in watcher.notes), "what is left out is said"
    assert summary.rows == 7 and verify(str(tmp_path / "out"), source=True).ok


def test_bad_images_are_rows_and_the_good_ones_are_not_disturbed(tmp_path, model):
    good = {f"a{n}.jpg": photo(n) for n in range(6)}
    clean = write_tar(tmp_path / "clean" / "x.tar", good)
    bad = {"b0.jpg": b"", "b1.jpg": b"GIF89a no", "b2.jpg": photo(9)[:700], "b3.json": b"{}"}
    members = dict(sorted((good | bad).items(), key=lambda item: item[0][1:]))  # bad among good
    write_tar(tmp_path / "mixed" / "x.tar", members)
    run(tmp_path / "1", model, clean)
    summary, _ = run(tmp_path / "2", model, tmp_path / "mixed")
    undisturbed = {row["key"]: (row["label"], row["topk"]) for row in rows(tmp_path / "1")}
    mixed = {row["key"]: row for row in rows(tmp_path / "2")}
    assert {key: row["error"] for key, row in mixed.items() if row["error"]} == {
        "b0": "empty",
        "b1": "not_an_image",
        "b2": "truncated",
        "b3": "missing_image",
    }
    assert {key: (row["label"], row["topk"]) for key, row in mixed.items() if not row["error"]} == undisturbed
    assert all(row["label"] is None and row["topk"] is None for row in mixed.values() if row["error"])
    assert sum(summary.errors.values()) == 4


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "where",
    ["inside a member", *(pytest.param(w, marks=LONG) for w in ("between members", "before the end blocks"))],
)
def test_a_cut_tar_gives_its_good_samples_and_one_row_that_says_so(tmp_path, model, where):
    write_shards(tmp_path / "shards", shards=3, images=5)
    cut = tmp_path / "shards" / "part-001.tar"
    data = cut.read_bytes()
    with tarfile.open(cut) as tar:
        members = tar.getmembers()
    fourth = members[6]  # the fourth image; each sample is a jpg and a json
    ends = {
        "inside a member": fourth.offset_data + fourth.size // 2,
        "between members": fourth.offset,
        "before the end blocks": members[-1].offset_data + 512,
    }
    cut.write_bytes(data[: ends[where]])
    run(tmp_path, model, tmp_path / "shards")
    found = rows(tmp_path)
    truncated = [row for row in found if row["error"] == "shard_truncated"]
    survivors = 5 if where == "before the end blocks" else 3
    assert len(truncated) == 1 and truncated[0]["key"] is None and truncated[0]["offset"] <= ends[where]
    assert len(found) == 10 + survivors + 1
    assert verify(str(tmp_path / "out"), source=True).ok


def test_on_error_fail_stops_at_the_first_and_keeps_what_was_done(tmp_path, model):
    write_tar(tmp_path / "shards" / "x.tar", {"a.jpg": photo(1), "b.jpg": b"no image"})
    with pytest.raises(Exception) as stop:
        run(tmp_path, model, tmp_path / "shards", on_error="fail")
    cause = root_cause(stop.value, UserError)
    assert (
        isinstance(cause, UserError)
        and "x.tar: 'b': not_an_image" in str(cause)
        and "--on-error fail" in str(cause)
    )
    summary, _ = run(tmp_path, model, tmp_path / "shards")
    assert summary.errors == {"not_an_image": 1}


def test_skipped_members_are_counted_once_by_kind(tmp_path, model):
    path = tmp_path / "shards" / "x.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for number in range(6):
            for name, data in (
                (f"d{number}", None),
                (f"{number}.jpg", photo(number)),
                (f"._{number}.jpg", b"x"),
                (f"note{number}", b"x"),
            ):
                info = tarfile.TarInfo(name)
                info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
                info.size = len(data or b"")
                tar.addfile(info, BytesIO(data or b""))
    summary, _ = run(tmp_path, model, tmp_path / "shards", unit_rows=2)
    assert summary.skipped_members == {"directory": 6, "apple_double": 6, "no_extension": 6}
    sorted((tmp_path / "out" / "predictions").iterdir())[
        1
    ].unlink()  # a resume reads the rest of the shard again
    summary, _ = run(tmp_path, model, tmp_path / "shards", unit_rows=2)
    assert summary.skipped_members == {"directory": 6, "apple_double": 6, "no_extension": 6}


def test_a_shard_that_the_store_does_not_give_stays_open_and_fails_the_run(tmp_path, model, monkeypatch):
    write_shards(tmp_path / "shards", shards=2, images=4)
    real = FirstPage.of

    def with_one_more(finder):
        page = real(finder)
        gone = str(tmp_path / "shards" / "gone.tar")
        page.shards.append(Shard(kind="tar", uri=gone, size=10240, version="0"))
        return page

    monkeypatch.setattr(FirstPage, "of", with_one_more)
    with pytest.raises(UserError, match=r"1 shard could not be read to the end, first .*gone\.tar"):
        run(tmp_path, model, tmp_path / "shards")
    assert len(rows(tmp_path)) == 8, "the other shards go on"
    assert not (tmp_path / "out" / "_run" / "summary.json").exists(), (
        "a run with an open shard is not complete"
    )


def test_the_labels_in_parquet_are_those_that_timm_gives(tmp_path):
    """timm's own model and preprocessing, against the whole pipeline with its folded normalisation."""
    import timm

    from wordsworth.pipeline.prediction.load_model import load_model

    torch.manual_seed(0)
    theirs = timm.create_model("test_vit").eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=theirs), is_training=False)
    write_tar(
        tmp_path / "shards" / "x.tar", {f"{number}.jpg": photo(number, (300, 220)) for number in range(24)}
    )
    run(tmp_path, load_model("timm:test_vit", weights=str(tmp_path / "weights.pth")), tmp_path / "shards")
    for row in rows(tmp_path):
        data = Path(row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        with torch.no_grad():
            scores = theirs(transform(Image.open(BytesIO(data)).convert("RGB"))[None]).softmax(-1)[0]
        assert row["label_id"] == int(scores.argmax())
        assert row["label"] == timm.data.ImageNetInfo().index_to_description(row["label_id"])
        assert row["score"] == pytest.approx(float(scores.max()), rel=0.02)


def test_the_labels_in_parquet_are_those_that_transformers_gives(tmp_path):
    """Its processor, which squashes, and its model, against the pipeline with the folder that both saved."""
    import transformers

    from wordsworth.pipeline.prediction.load_model import load_model

    names = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(**size, image_size=32, id2label=names)
    ).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    for part in (theirs, processor):
        part.save_pretrained(tmp_path / "hub")
    write_tar(
        tmp_path / "shards" / "x.tar", {f"{number}.jpg": photo(number, (300, 220)) for number in range(24)}
    )
    run(tmp_path, load_model(str(tmp_path / "hub")), tmp_path / "shards")
    for row in rows(tmp_path):
        data = Path(row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        with torch.no_grad():
            scores = theirs(**processor(Image.open(BytesIO(data)), return_tensors="pt")).logits.softmax(-1)[0]
        assert row["label"] == names[int(scores.argmax())]
        assert row["score"] == pytest.approx(float(scores.max()), rel=0.02)


def test_embed_writes_vectors_and_no_labels(tmp_path, model):
    write_shards(tmp_path / "shards", shards=1, images=6)
    run(tmp_path, model, tmp_path / "shards", command="embed", top_k=0, embedding="float32", normalize=True)
    table = pq.read_table(tmp_path / "out" / "predictions")
    assert "label" not in table.column_names and "topk" not in table.column_names
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[32]"
    assert all(abs(sum(x * x for x in row["embedding"]) - 1) < 1e-5 for row in table.to_pylist())


def test_a_hybrid_labels_like_its_model_on_whole_images(tmp_path):
    config = ViTConfig(
        image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_dim=64, num_classes=5, resnet=()
    )
    checkpoint = random_checkpoint(config, Preprocessing(), 0)
    for tensor in checkpoint.state.values():  # a zero head would label everything alike
        tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    write_shards(tmp_path / "shards", shards=1, images=8)
    run(tmp_path, checkpoint, tmp_path / "shards")
    model = checkpoint.model()
    for row in rows(tmp_path):
        data = Path(row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        pixels = crop_for_evaluation(Image.open(BytesIO(data)), checkpoint.preprocessing, (32, 32))
        with torch.no_grad():
            scores = model(
                (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
            ).softmax(-1)[0]
        assert row["label_id"] == int(scores.argmax()) and row["score"] == pytest.approx(
            float(scores.max()), rel=0.02
        )


HOSTILE = Path(__file__).parents[1] / "support" / "hostile.py"


def decode_by(script: Path, calls: Path):
    """The decode stage with another child. Every call leaves a line, so that a second call by Ray is seen."""

    def stage(table, settings):
        from dataclasses import replace

        from wordsworth.pipeline.images.decode import decode_unit
        from wordsworth.pipeline.images.sandbox import process_sandbox
        from wordsworth.pipeline.unit import Unit

        unit = Unit.from_arrow(table)
        with open(calls, "a") as file:
            file.write(f"{unit.shard_name}-{unit.number}\n")
        sandbox = process_sandbox(replace(settings.sandbox_settings, script=script))
        return decode_unit(unit, settings, sandbox=sandbox).to_arrow()

    return stage


def test_an_image_that_kills_its_decoder_is_one_row_and_no_worker_dies(tmp_path, model, monkeypatch):
    members = {f"{n:02d}.jpg": photo(n) for n in range(24)}
    clean = write_tar(tmp_path / "clean" / "x.tar", members)
    poison = write_tar(
        tmp_path / "poison" / "x.tar", members | {"13.jpg": photo(13) + b"ORDER:signal SIGSEGV"}
    )
    run(tmp_path / "1", model, clean, unit_rows=8)
    monkeypatch.setattr(dataset, "decode_stage", decode_by(HOSTILE, tmp_path / "calls"))
    summary, _ = run(tmp_path / "2", model, poison, unit_rows=8)
    undisturbed = {row["key"]: row["topk"] for row in rows(tmp_path / "1")}
    found = {row["key"]: row for row in rows(tmp_path / "2")}
    assert len(rows(tmp_path / "2")) == 24 and summary.errors == {"decoder_crashed": 1}
    assert found["13"]["error"] == "decoder_crashed" and "SIGSEGV" in found["13"]["error_detail"]
    assert {key: row["topk"] for key, row in found.items() if key != "13"} == {
        k: v for k, v in undisturbed.items() if k != "13"
    }
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) == len(set(calls)) == 3, "Ray called a unit again: its worker died"


def test_a_decoder_that_cannot_start_fails_the_run_in_one_clear_line(tmp_path, model, monkeypatch):
    write_shards(tmp_path / "shards", shards=1, images=3)
    (tmp_path / "broken.py").write_text("import no_such_library")
    monkeypatch.setattr(dataset, "decode_stage", decode_by(tmp_path / "broken.py", tmp_path / "calls"))
    with pytest.raises(Exception) as error:
        run(tmp_path, model, tmp_path / "shards")
    cause = root_cause(error.value)
    assert isinstance(cause, UserError), cause
    assert "the process that decodes images does not start" in str(cause) and "no_such_library" in str(cause)
