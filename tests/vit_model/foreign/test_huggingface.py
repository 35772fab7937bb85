"""Folders of transformers and OpenCLIP, each against the library itself, every parameter random."""

import json
from dataclasses import replace

import open_clip
import pytest
import safetensors.torch
import torch
import transformers

from tests.support.parity import FP32, FP64, assert_outputs, assert_training, coarse, images
from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.foreign import huggingface
from wordsworth.vit_model.foreign.load import from_file, from_folder, weights_for
from wordsworth.vit_model.foreign.timm import NotOurs
from wordsworth.vit_model.foreign.translate import translate
from wordsworth.vit_model.weights import load_weights

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
HF_SIZE = SIZE | {"intermediate_size": 64}
LABELS = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}

# name: (model, what of its answer is compared, its blocks)
HF = {
    "ViT": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**HF_SIZE, id2label=LABELS)),
        lambda m, x: m(pixel_values=x).logits,
        lambda m: m.vit.layers,
    ),
    "ViT with the tanh GELU": (
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(**HF_SIZE, num_labels=4, hidden_act="gelu_new")
        ),
        lambda m, x: m(pixel_values=x).logits,
        lambda m: m.vit.layers,
    ),
    "ViT without biases of q, k, v": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**HF_SIZE, qkv_bias=False)),
        lambda m, x: m(pixel_values=x).logits,
        lambda m: m.vit.layers,
    ),
    "ViT with a pooler": (
        lambda: transformers.ViTModel(transformers.ViTConfig(**HF_SIZE)),
        lambda m, x: m(pixel_values=x).pooler_output,
        lambda m: m.layers,
    ),
    "DINOv2": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZE, mlp_ratio=2)),
        lambda m, x: m(pixel_values=x).pooler_output,
        lambda m: m.encoder.layer,
    ),
    "DINOv2 with registers": (
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SIZE, mlp_ratio=2)
        ),
        lambda m, x: m(pixel_values=x).pooler_output,
        lambda m: m.encoder.layer,
    ),
    "CLIP": (
        lambda: transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**HF_SIZE, projection_dim=16)
        ),
        lambda m, x: m(pixel_values=x).image_embeds,
        lambda m: m.vision_model.encoder.layers,
    ),
    "SigLIP": (
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**HF_SIZE)),
        lambda m, x: m(pixel_values=x).pooler_output,
        lambda m: m.encoder.layers,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HF)
def test_a_hugging_face_folder_is_their_model(name, randomised, tmp_path):
    make, call, blocks = HF[name]
    theirs = randomised(make())
    theirs.save_pretrained(tmp_path)
    checkpoint = from_folder(tmp_path)
    assert checkpoint.config.num_classes or checkpoint.labels is None
    assert_outputs(checkpoint.model(), theirs, call, blocks)
    assert_training(
        checkpoint.model(), theirs, call
    )  # whose names are those of transformers' modules: the other spelling


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_a_distilled_deit_of_hugging_face_is_their_model(name, randomised, tmp_path):
    theirs = coarse(randomised(getattr(transformers, name)(transformers.DeiTConfig(**HF_SIZE, num_labels=5))))
    theirs.save_pretrained(tmp_path)
    checkpoint = from_folder(tmp_path)
    assert (checkpoint.config.pool == "distilled") == name.endswith("Teacher")
    assert_outputs(checkpoint.model(), theirs, lambda m, x: m(pixel_values=x).logits, lambda m: m.deit.layers)


def test_the_new_names_of_transformers_modules_are_read_as_the_old_ones_of_its_files(randomised, tmp_path):
    theirs = randomised(HF["ViT"][0]())
    theirs.save_pretrained(tmp_path)
    old, new = safetensors.torch.load_file(tmp_path / "model.safetensors"), theirs.state_dict()
    assert old.keys() != new.keys()
    found, again = translate(old, "old").state, translate(new, "new").state
    assert found.keys() == again.keys() and all(torch.equal(found[key], again[key]) for key in found)


def test_a_hugging_face_folder_brings_labels_and_preprocessing(randomised, tmp_path):
    randomised(HF["ViT"][0]()).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    checkpoint = from_folder(tmp_path)
    assert checkpoint.labels == tuple(LABELS.values())
    assert checkpoint.preprocessing == Preprocessing(
        interpolation="bilinear", crop_pct=1.0, crop_mode="squash"
    )
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    clip = from_folder(tmp_path).preprocessing
    assert (clip.interpolation, clip.crop_pct, clip.crop_mode) == ("bicubic", 32 / 36, "center")
    assert clip.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    transformers.DeiTImageProcessor(
        size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}, do_normalize=False
    ).save_pretrained(tmp_path)
    deit = from_folder(tmp_path).preprocessing
    assert deit == Preprocessing(
        interpolation="bicubic", crop_pct=0.8, mean=(0, 0, 0), std=(1, 1, 1), crop_mode="squash"
    )


def test_the_processors_of_clip_old_and_new_keep_the_aspect_ratio(randomised, tmp_path):
    randomised(HF["CLIP"][0]()).save_pretrained(tmp_path)
    colours = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    old = {"crop_size": 32, "do_center_crop": True, "do_resize": True, "resample": 3, "size": 32, **colours}
    missing = from_folder(tmp_path).preprocessing  # CLIP's own, where nothing is said
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(old | {"feature_extractor_type": "CLIPFeatureExtractor"})
    )
    before = from_folder(tmp_path).preprocessing
    (tmp_path / "preprocessor_config.json").unlink()
    new = old | {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": new, "processor_class": "CLIPProcessor"})
    )
    after = from_folder(tmp_path).preprocessing
    assert (
        missing
        == before
        == after
        == Preprocessing(
            interpolation="bicubic", crop_pct=1.0, mean=colours["image_mean"], std=colours["image_std"]
        )
    )


def test_a_processor_that_crops_smaller_than_the_model_decides_the_size_as_dinov2s_does(randomised, tmp_path):
    theirs = randomised(HF["DINOv2"][0]())
    theirs.save_pretrained(tmp_path)
    transformers.BitImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(tmp_path)
    checkpoint = from_folder(tmp_path)
    assert checkpoint.config.image_size == (16, 16) and checkpoint.preprocessing.crop_pct == 0.8
    x = images((16, 16))
    torch.testing.assert_close(checkpoint.model()(x), theirs(pixel_values=x).pooler_output, **FP32)


def test_a_classifier_beside_a_pooler_does_not_use_it_as_transformers_does_not(randomised, tmp_path):
    theirs = randomised(HF["ViT"][0]())
    theirs.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    pooler = {"vit.pooler.dense.weight": torch.randn(32, 32), "vit.pooler.dense.bias": torch.randn(32)}
    safetensors.torch.save_file(
        state | pooler | {"vit.embeddings.mask_token": torch.ones(1, 1, 32)}, tmp_path / "model.safetensors"
    )
    torch.testing.assert_close(
        from_folder(tmp_path).model()(images()), theirs(pixel_values=images()).logits, **FP32
    )


def test_weights_in_several_files_are_one_model(randomised, tmp_path):
    theirs = randomised(HF["ViT"][0]())
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 1
    one, many = from_folder(tmp_path / "one"), from_folder(tmp_path / "many")
    assert one.fingerprint() == many.fingerprint()


@pytest.mark.slow
def test_the_text_tower_of_a_clip_is_left_out_and_counted(randomised, tmp_path):
    vision = transformers.CLIPVisionConfig(**HF_SIZE).to_dict()
    text = {
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    theirs = randomised(
        transformers.CLIPModel(
            transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
        )
    )
    theirs.save_pretrained(tmp_path)
    checkpoint = from_folder(tmp_path)
    texts = [key for key in theirs.state_dict() if key.startswith("text_") or key == "logit_scale"]
    assert checkpoint.extra["left_out"] == len(texts) > 10
    x = images()
    expected = theirs.visual_projection(theirs.vision_model(pixel_values=x).pooler_output)
    torch.testing.assert_close(checkpoint.model()(x), expected, **FP32)


@pytest.mark.slow
@pytest.mark.parametrize("quick", [True, False])
def test_the_visual_tower_of_an_openclip_folder_is_theirs(quick, randomised, tmp_path):
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0}
    text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    theirs = randomised(open_clip.model.CLIP(16, vision, text, quick_gelu=quick))
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    about = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick},
        "preprocess_cfg": {},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    checkpoint = from_folder(tmp_path)
    assert checkpoint.config.heads == 4 and checkpoint.extra["left_out"] > 10
    assert_outputs(checkpoint.model(), theirs.visual, lambda m, x: m(x), lambda m: m.transformer.resblocks)
    assert_training(checkpoint.model(), theirs.visual, lambda m, x: m(x))
    with pytest.raises(ModelError, match="do not tell the GELU"):  # the file alone
        from_file(tmp_path / "open_clip_pytorch_model.bin")
    for part in ({"pool_type": "avg"}, {"final_ln_after_pool": True}):  # what our own ViT has not
        other = about | {"model_cfg": about["model_cfg"] | {"vision_cfg": vision | part}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(other))
        assert from_folder(tmp_path).variant == "open_clip:ViT"
    named = replace(checkpoint.config, norm_eps=1e-6)
    # Under a named architecture.
    config, state, _ = weights_for(named, tmp_path / "open_clip_pytorch_model.bin")
    assert config == checkpoint.config and all(
        torch.equal(state[key], checkpoint.state[key]) for key in state
    )


# ---- what can be wrong -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [{"gelu": "tanh"}, {"gelu": "quick"}, {"norm_eps": 1e-6}],
    ids=lambda w: "-".join(map(str, next(iter(w.items())))),
)
def test_a_wrong_switch_of_a_hugging_face_model_is_caught(wrong, randomised, tmp_path):
    make, call, _ = HF["ViT"]
    theirs = randomised(make())
    theirs.save_pretrained(tmp_path)
    checkpoint = from_folder(tmp_path)
    model = replace(checkpoint, config=replace(checkpoint.config, **wrong)).model()
    x = images().double()
    with torch.no_grad():
        assert not torch.allclose(model.double()(x), call(theirs.double(), x), **FP64)


@pytest.mark.slow
def test_the_config_json_beside_a_file_says_its_switches(randomised, tmp_path):
    theirs = randomised(HF["ViT with the tanh GELU"][0]())
    theirs.save_pretrained(tmp_path / "with")
    whole = from_folder(tmp_path / "with")
    named = replace(whole.config, gelu="exact", norm_eps=1e-5)
    config, _, _ = weights_for(named, tmp_path / "with" / "model.safetensors")
    assert (config.gelu, config.norm_eps) == ("tanh", 1e-12)
    assert from_file(tmp_path / "with" / "model.safetensors").fingerprint() == whole.fingerprint()
    alone = (tmp_path / "with" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    assert weights_for(named, alone)[0] == replace(named, pos_interp="hf")
    with pytest.raises(ModelError, match="do not tell the GELU"):
        from_file(alone)


def test_a_file_beside_a_config_json_gives_its_own_weights_and_not_those_of_the_folder(randomised, tmp_path):
    theirs = randomised(HF["ViT"][0]())
    theirs.save_pretrained(tmp_path)
    plain = {name: tensor + 1 for name, tensor in theirs.state_dict().items()}
    averaged = {name: tensor + 2 for name, tensor in plain.items()}
    safetensors.torch.save_file(plain, tmp_path / "best.safetensors")
    torch.save({"model": plain, "model_ema": averaged}, tmp_path / "last.pth")
    folder = from_folder(tmp_path)
    best = from_file(tmp_path / "best.safetensors")
    assert torch.equal(best.state["head.bias"], folder.state["head.bias"] + 1)
    assert (best.labels, best.extra["weights"]) == (folder.labels, "best.safetensors")
    assert torch.equal(from_file(tmp_path / "last.pth").state["head.bias"], averaged["classifier.bias"])
    assert from_file(tmp_path / "last.pth", "model").fingerprint() == best.fingerprint()


@pytest.mark.parametrize("text", ["[]", "null", '"vit"'])
def test_a_config_json_that_is_no_object_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json is not a JSON object"):
        from_folder(tmp_path)


def test_a_missing_tensor_is_called_what_it_is_called_in_the_file(randomised, tmp_path):
    randomised(HF["ViT"][0]()).save_pretrained(tmp_path)
    state = load_weights(tmp_path / "model.safetensors")
    del state["vit.encoder.layer.1.attention.attention.key.bias"], state["vit.layernorm.weight"]
    state |= {"vit.surplus": torch.ones(1), "classifier.weight": torch.ones(4, 32)}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as error:
        from_folder(tmp_path)
    message = str(error.value)
    assert "2 missing (encoder.layer.1.attention.attention.key.bias, layernorm.weight)" in message, message
    assert (
        "1 unexpected (surplus)" in message
        and "1 misfitting (head.bias is (5,) in the file, (4,) in the model)" in message
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "beit"}, "does not have for a beit"),
        ({"hidden_act": "zelu"}, "zelu"),
        ({"num_attention_heads": 5}, "width 32 is not a multiple of heads 5"),
        ({"image_size": 48}, r"position_embeddings|pos_embed is \(1, 17, 32\)"),
        ({"vision_config": ["a"]}, "config.json cannot be used: AttributeError"),
        ({"num_attention_heads": "4"}, "heads is '4'"),
    ],
)
def test_a_config_json_that_cannot_be_used_says_why(change, message, randomised, tmp_path):
    randomised(HF["ViT"][0]()).save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | change))
    with pytest.raises(ModelError, match=message) as error:
        from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_heads_and_parts_that_are_not_ours_are_named_and_not_dropped(tmp_path):
    size = SIZE | {"mlp_ratio": 2}
    theirs = transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**size, num_labels=3))
    theirs.save_pretrained(tmp_path)  # its head takes [class] and the mean of the patches
    with pytest.raises(NotOurs, match="a Dinov2ForImageClassification has another head than our own ViT"):
        huggingface.from_folder(tmp_path)
    theirs = transformers.Dinov2Model(transformers.Dinov2Config(**size, use_swiglu_ffn=True))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(NotOurs, match="has a SwiGLU instead of an MLP with GELU"):
        huggingface.from_folder(tmp_path)
