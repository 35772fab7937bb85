"""plan: what a run would cost is counted and measured on the source itself, and scaled to other machines."""

import json
import re
from dataclasses import asdict, replace

import pytest

from tests.support.builders import photo, write_shards, write_tar
from tests.support.labelling import run
from tests.support.standin.device import standin
from wordsworth.jobs.label import foretold
from wordsworth.jobs.plan import _gpus
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.estimate import _sample_shards, measure
from wordsworth.pipeline.labeling.forecast import EFFICIENCY, RAY_SECONDS, Measurement, forecast
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.prediction.load_model import load_model

ON_CPU = Measurement(
    shards=100,
    bytes=10**9,
    sampled=256,
    image_bytes=10**5,
    output_bytes=200.0,
    errors=0.0,
    device="cpu",
    precision="bf16",
    unit_rows=100,
    seconds={"read": 0.001, "decode": 0.002, "predict": 0.02, "write": 0.0001},
    read_cpu=0.0001,
)
PER_IMAGE = 0.002 + 0.0001 + 0.0001 + RAY_SECONDS / 100  # CPU beside the model's


def request(source, **more) -> LabelRequest:
    return LabelRequest(command="label", sources=(str(source),), output="nowhere", model="m", **more)


def test_a_forecast_divides_the_cores_among_the_stages():
    found = forecast(ON_CPU, 8, 0)
    assert ON_CPU.images == 10_000
    assert found.images_per_second == pytest.approx(EFFICIENCY * 8 / (PER_IMAGE + 0.02))
    assert (
        found.seconds == pytest.approx(10_000 / found.images_per_second) and found.output_bytes == 2_000_000
    )
    assert found.bottleneck == "predict" and found.cores_per_gpu is None
    assert sum(found.busy.values()) == pytest.approx(1)
    assert forecast(ON_CPU, 16, 0).seconds == pytest.approx(found.seconds / 2)


def test_beside_gpus_the_cores_decode_and_the_scarcer_of_the_two_decides():
    on_gpu = replace(ON_CPU, device="cuda", seconds={**ON_CPU.seconds, "predict": 0.0005})
    many, few = forecast(on_gpu, 64, 1), forecast(on_gpu, 2, 1)
    assert many.cores_per_gpu == few.cores_per_gpu == pytest.approx(PER_IMAGE / 0.0005)
    assert (many.bottleneck, many.busy["predict"]) == (
        "predict",
        1,
    ) and many.images_per_second == pytest.approx(EFFICIENCY * 2000)
    assert few.bottleneck == "decode" and few.images_per_second == pytest.approx(EFFICIENCY * 2 / PER_IMAGE)
    assert few.busy["predict"] == pytest.approx(few.images_per_second / EFFICIENCY * 0.0005)


def test_with_a_limit_the_first_shards_are_listed_and_the_first_images_are_the_run(tmp_path):
    write_shards(tmp_path / "in", shards=9, images=5)
    sizes = sorted(path.stat().st_size for path in (tmp_path / "in").iterdir())
    sample = _sample_shards(request(tmp_path / "in", limit=1000))
    assert sample.num_shards == 4 and sample.is_cut and sample.num_bytes < sum(sizes)
    assert not _sample_shards(request(tmp_path / "in")).is_cut
    assert replace(ON_CPU, limit=300).images == 300 and replace(ON_CPU, limit=10**6).images == ON_CPU.images


@pytest.mark.slow
def test_a_source_is_counted_and_every_stage_is_timed_on_it(tmp_path, small_model):
    write_shards(tmp_path / "in", shards=6, images=5)
    size = sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    (tmp_path / "in" / "._a.tar").touch()
    notes: list[str] = []
    asked = request(tmp_path / "in")
    found = measure(asked, load_model(str(small_model)), "cpu", 0.5, note=notes.append)
    assert (found.shards, found.bytes) == (6, size)
    assert notes == ["skipped by their names: 1 apple_double; --include-hidden takes them"]
    assert found.sampled == 20 and found.images == 30, "four shards are looked into"
    assert found.errors == 0 and 50 < found.output_bytes < 10_000 and found.device == "cpu"
    assert set(found.seconds) == {"read", "decode", "predict", "write"} and all(
        0 < value < 1 for value in found.seconds.values()
    )
    assert not (tmp_path / "nowhere").exists()


def test_what_cannot_be_decoded_is_a_share_or_ends_it(tmp_path, small_model):
    write_tar(
        tmp_path / "a" / "a.tar", {"0.jpg": photo(0), "1.jpg": b"none", "2.jpg": photo(2), "3.jpg": b""}
    )
    found = measure(request(tmp_path / "a"), load_model(str(small_model)), "cpu", 0.1)
    assert found.errors == 0.5 and found.bad_images == ["1: not_an_image", "3: empty"]
    write_tar(tmp_path / "b" / "b.tar", {"0.jpg": b"none"})
    with pytest.raises(
        UserError, match=r"none of 1 image could be decoded, first shard .*b.tar: 0: not_an_image: mend"
    ):
        measure(request(tmp_path / "b"), load_model(str(small_model)), "cpu", 0.1)


def test_the_command_prints_a_table_or_json_and_writes_nothing(tmp_path, small_model, wordsworth):
    write_shards(tmp_path / "in", shards=2, images=4)
    command = ("plan", tmp_path / "in", "--model", small_model, "--seconds", 0.2, "--cores", 8)
    table = wordsworth(*command, "--price-per-hour", 3)
    assert table.returncode == 0, table.stderr
    for said in ("about 8 images", "2 shards", "images/s on 8 cores", "bottleneck", "of Parquet", "money"):
        assert said in table.stdout, table.stdout
    told = json.loads(wordsworth(*command, "--json").stdout)
    assert (
        told["measured"]["images"] == 8 and told["cores"] == 8 and told["forecast"]["images_per_second"] > 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_run_says_how_what_was_foretold_turned_out(tmp_path, small_model, local_ray):
    write_shards(tmp_path / "in", shards=4, images=2)
    model, source = load_model(str(small_model)), tmp_path / "in"
    measured = measure(request(source), model, "cpu", 0.1)
    told = {
        "measured": asdict(measured) | {"images": measured.images},
        "forecast": asdict(forecast(measured, 2, 0)),
    }
    RunFolder(str(tmp_path / "out")).keep_estimate(json.loads(json.dumps(told)))
    summary, _ = run(tmp_path, model, source)
    kept, size = (
        summary.estimate,
        sum(path.stat().st_size for path in (tmp_path / "out" / "predictions").iterdir()),
    )
    assert kept["images"] == [8, 8] and kept["bytes_written"][0] > 0 and kept["bytes_written"][1] == size
    # A run of seconds has no rate.
    assert re.match(r"8 images \(it was 8\), [\d,.]+ images/s.*, .* of Parquet", foretold(**kept))
    size = "10 bytes of Parquet (it was 20 bytes)"
    assert foretold([9, 8], [5.0, None], [10, 20]) == f"9 images (it was 8), 5.0 images/s, {size}"
    assert (
        foretold([1, 8], [5.0, 4.0], [10, 20])
        == f"1 image (it was 8), 5.0 images/s (it was 4.0, 80%), {size}"
    )


# ---- GPUs -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_a_gpu_the_models_rate_is_that_of_its_own_batches(tmp_path, small_model):
    write_shards(tmp_path / "in", shards=2, images=5)
    with standin(bf16=False):
        found = measure(request(tmp_path / "in", batch_size=4), load_model(str(small_model)), "cuda", 0.1)
    assert (found.device, found.precision, found.stated) == ("cuda", "fp32", False) and 0 < found.seconds[
        "predict"
    ] < 1


@pytest.mark.parametrize("asked", [{"gpus": 4.0}, {"device": "cuda"}])
def test_a_gpu_that_is_not_here_is_not_replaced_by_cpus(asked):
    with pytest.raises(
        UserError, match="there is no GPU here to measure the model on: state its rate"
    ) as refusal:
        _gpus(**{"device": "auto", "gpus": None, "images_per_gpu_second": None} | asked)
    assert refusal.value.exit_code == 2


def test_where_the_model_of_a_run_computes_follows_from_what_is_asked_for_and_what_is_there():
    assert _gpus("auto", None, None) == ("cpu", 0)
    assert _gpus("auto", 4.0, 1000.0) == ("cuda", 4) and _gpus("auto", None, 1000.0) == ("cuda", 1)
    with pytest.raises(UserError, match="--gpus is for GPUs and --device cpu for none"):
        _gpus("cpu", 4.0, None)
    with standin():
        assert _gpus("auto", None, None) == ("cuda", 1) and _gpus("cpu", None, None) == ("cpu", 0)


def test_a_stated_rate_is_used_and_called_so(tmp_path, small_model, wordsworth):
    write_shards(tmp_path / "in", shards=2, images=4)
    command = ("plan", tmp_path / "in", "--model", small_model, "--seconds", 0.2, "--cores", 64, "--gpus", 4)
    refused = wordsworth(*command)
    assert (
        refused.returncode == 2 and "--gpus: there is no GPU here to measure the model on" in refused.stderr
    )
    done = wordsworth(*command, "--images-per-gpu-second", 50)
    assert done.returncode == 0, done.stderr
    for said in ("50", "a GPU, as stated", "images/s on 64 cores and 4 GPUs", "the model: 100% of the GPUs"):
        assert said in done.stdout, done.stdout
