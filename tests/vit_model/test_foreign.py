"""Weights in the names of torch libraries: each against the library itself, every parameter random."""

import json
from dataclasses import replace

import open_clip
import pytest
import safetensors.torch
import timm
import torch
import torchvision
import transformers
from timm.models.vision_transformer import checkpoint_filter_fn

from tests.vit_model.parity import FP32, FP64, assert_outputs, assert_training, images
from vit_model import hf_models
from vit_model.checkpoint import load_weights
from vit_model.config import ModelError, Preprocessing
from vit_model.foreign import from_file, translate, weights_for

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
HF_SIZE = SIZE | {"intermediate_size": 64}
TIMM_SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 12, "num_heads": 3, "num_classes": 5}  # Ti's: a known size
LABELS = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}

# name: (model, what of its answer is compared, its blocks)
HF = {
    "ViT": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**HF_SIZE, id2label=LABELS)),
        lambda m, x: m(pixel_values=x).logits,
        lambda m: m.vit.layers,
    ),
    "ViT with the tanh GELU": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**HF_SIZE, num_labels=4, hidden_act="gelu_new")),
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
        lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SIZE, mlp_ratio=2)),
        lambda m, x: m(pixel_values=x).pooler_output,
        lambda m: m.encoder.layer,
    ),
    "CLIP": (
        lambda: transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**HF_SIZE, projection_dim=16)),
        lambda m, x: m(pixel_values=x).image_embeds,
        lambda m: m.vision_model.encoder.layers,
    ),
    "SigLIP": (
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**HF_SIZE)),
        lambda m, x: m(pixel_values=x).pooler_output,
        lambda m: m.encoder.layers,
    ),
}


@pytest.mark.parametrize("name", HF)
def test_a_hugging_face_folder_is_their_model(name, randomised, tmp_path):
    make, call, blocks = HF[name]
    theirs = randomised(make())
    theirs.save_pretrained(tmp_path)
    checkpoint = hf_models.from_folder(tmp_path)
    assert checkpoint.config.num_classes or checkpoint.labels is None
    assert_outputs(checkpoint.model(), theirs, call, blocks)
    assert_training(checkpoint.model(), theirs, call)  # whose names are those of transformers' modules: the other spelling


@pytest.mark.parametrize("name", ["DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_a_distilled_deit_of_hugging_face_is_their_model(name, randomised, tmp_path):
    theirs = coarse(randomised(getattr(transformers, name)(transformers.DeiTConfig(**HF_SIZE, num_labels=5))))
    theirs.save_pretrained(tmp_path)
    checkpoint = hf_models.from_folder(tmp_path)
    assert (checkpoint.config.pool == "distilled") == name.endswith("Teacher")
    assert_outputs(checkpoint.model(), theirs, lambda m, x: m(pixel_values=x).logits, lambda m: m.deit.layers)


def coarse(model):
    """Weights of few digits: adding two of them rounds nothing, so what is folded on loading can be compared to 1e-12."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 1024).round() / 1024)
    return model


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
    checkpoint = hf_models.from_folder(tmp_path)
    assert checkpoint.labels == tuple(LABELS.values())
    assert checkpoint.preprocessing == Preprocessing("bilinear", 1.0, crop_mode="squash")
    transformers.CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    clip = hf_models.from_folder(tmp_path).preprocessing
    assert (clip.interpolation, clip.crop_pct, clip.crop_mode) == ("bicubic", 32 / 36, "center")
    assert clip.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    transformers.DeiTImageProcessor(
        size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}, do_normalize=False
    ).save_pretrained(tmp_path)
    deit = hf_models.from_folder(tmp_path).preprocessing
    assert deit == Preprocessing("bicubic", 0.8, (0, 0, 0), (1, 1, 1), crop_mode="squash")


def test_the_processors_of_clip_old_and_new_keep_the_aspect_ratio(randomised, tmp_path):
    randomised(HF["CLIP"][0]()).save_pretrained(tmp_path)
    colours = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    old = {"crop_size": 32, "do_center_crop": True, "do_resize": True, "resample": 3, "size": 32, **colours}
    missing = hf_models.from_folder(tmp_path).preprocessing  # CLIP's own, where nothing is said
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old | {"feature_extractor_type": "CLIPFeatureExtractor"}))
    before = hf_models.from_folder(tmp_path).preprocessing
    (tmp_path / "preprocessor_config.json").unlink()
    new = old | {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": new, "processor_class": "CLIPProcessor"}))
    after = hf_models.from_folder(tmp_path).preprocessing
    assert missing == before == after == Preprocessing("bicubic", 1.0, *colours.values())


def test_a_processor_that_crops_smaller_than_the_model_decides_the_size_as_dinov2s_does(randomised, tmp_path):
    theirs = randomised(HF["DINOv2"][0]())
    theirs.save_pretrained(tmp_path)
    transformers.BitImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    checkpoint = hf_models.from_folder(tmp_path)
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
    torch.testing.assert_close(hf_models.from_folder(tmp_path).model()(images()), theirs(pixel_values=images()).logits, **FP32)


def test_weights_in_several_files_are_one_model(randomised, tmp_path):
    theirs = randomised(HF["ViT"][0]())
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 1
    one, many = hf_models.from_folder(tmp_path / "one"), hf_models.from_folder(tmp_path / "many")
    assert one.fingerprint() == many.fingerprint()


def test_the_text_tower_of_a_clip_is_left_out_and_counted(randomised, tmp_path):
    vision = transformers.CLIPVisionConfig(**HF_SIZE).to_dict()
    text = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    theirs = randomised(transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)))
    theirs.save_pretrained(tmp_path)
    checkpoint = hf_models.from_folder(tmp_path)
    texts = [key for key in theirs.state_dict() if key.startswith("text_") or key == "logit_scale"]
    assert checkpoint.extra["left_out"] == len(texts) > 10
    x = images()
    expected = theirs.visual_projection(theirs.vision_model(pixel_values=x).pooler_output)
    torch.testing.assert_close(checkpoint.model()(x), expected, **FP32)


@pytest.mark.parametrize("quick", [True, False])
def test_the_visual_tower_of_an_openclip_folder_is_theirs(quick, randomised, tmp_path):
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0}
    text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    theirs = randomised(open_clip.model.CLIP(16, vision, text, quick_gelu=quick))
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    about = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    checkpoint = hf_models.from_folder(tmp_path)
    assert checkpoint.config.heads == 4 and checkpoint.extra["left_out"] > 10
    assert_outputs(checkpoint.model(), theirs.visual, lambda m, x: m(x), lambda m: m.transformer.resblocks)
    assert_training(checkpoint.model(), theirs.visual, lambda m, x: m(x))
    with pytest.raises(ModelError, match="do not tell the GELU"):  # the file alone
        from_file(tmp_path / "open_clip_pytorch_model.bin")
    for part in ({"pool_type": "avg"}, {"final_ln_after_pool": True}, {"timm_model_name": "vit_base_patch16_224"}):
        other = about | {"model_cfg": about["model_cfg"] | {"vision_cfg": vision | part}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(other))
        with pytest.raises(ModelError, match="visual tower"):
            hf_models.from_folder(tmp_path)
    named = replace(checkpoint.config, norm_eps=1e-6)
    config, state = weights_for(named, tmp_path / "open_clip_pytorch_model.bin")  # under a named architecture
    assert config == checkpoint.config and all(torch.equal(state[key], checkpoint.state[key]) for key in state)


def test_a_torchvision_file_is_their_model(randomised, tmp_path):
    theirs = randomised(torchvision.models.VisionTransformer(32, 8, 12, 3, 192, 768, num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    checkpoint = from_file(tmp_path / "vit.pth")
    assert (checkpoint.preprocessing.interpolation, checkpoint.preprocessing.crop_pct) == ("bicubic", 1.0)  # not 224: one of SWAG
    ours = checkpoint.model()
    assert_outputs(ours, theirs, lambda m, x: m(x), lambda m: m.encoder.layers)
    hub = {key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): t for key, t in theirs.state_dict().items()}
    torch.save(hub, tmp_path / "hub.pth")  # as the files that it downloads are named
    assert from_file(tmp_path / "hub.pth").fingerprint() == checkpoint.fingerprint()
    assert_training(ours, theirs, lambda m, x: m(x))


# ---- formats with timm's names, or nearly ---------------------------------------------------------------------------------


def deit_iii(theirs):
    return {key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for key, t in theirs.state_dict().items()}


def mae(theirs):
    decoder = {
        "mask_token": torch.ones(1, 1, 16),
        "decoder_pos_embed": torch.ones(1, 17, 16),
        "decoder_embed.weight": torch.ones(16, 64),
    }
    return {"model": {**theirs.state_dict(), **decoder, "decoder_blocks.0.norm1.weight": torch.ones(16)}}


def dinov2(theirs):
    return {**theirs.state_dict(), "mask_token": torch.ones(1, 192)}


def distilled_deit(theirs):
    return {"model": theirs.state_dict()}


NEARLY_TIMM = {
    "DeiT III": ("vit_base_patch16_224", {"init_values": 0.1, "no_embed_class": True}, deit_iii),
    "MAE": ("vit_base_patch16_224", {"num_classes": 0}, mae),
    "DINOv2": ("vit_base_patch16_224", {"init_values": 0.1, "num_classes": 0}, dinov2),
    "distilled DeiT": ("deit_base_distilled_patch16_224", {}, distilled_deit),
}


@pytest.mark.parametrize("name", NEARLY_TIMM)
def test_a_file_of_the_authors_is_timms_model(name, randomised, tmp_path):
    architecture, parts, saved = NEARLY_TIMM[name]
    theirs = coarse(randomised(timm.create_model(architecture, **TIMM_SIZE | parts)))
    torch.save(saved(theirs), tmp_path / "authors.pth")
    checkpoint = from_file(tmp_path / "authors.pth")
    assert checkpoint.extra["format"] == name
    assert checkpoint.config.norm_eps == 1e-6 and checkpoint.preprocessing.mean == (0.485, 0.456, 0.406)
    assert_outputs(checkpoint.model(), theirs, lambda m, x: m(x), lambda m: m.blocks)
    if name != "distilled DeiT":  # whose two heads are one of ours
        assert_training(checkpoint.model(), theirs, lambda m, x: m(x))


def test_dinov2_with_registers_is_what_timm_makes_of_the_same_file(randomised, tmp_path):
    parts = {"init_values": 0.1, "num_classes": 0, "reg_tokens": 4, "no_embed_class": True}
    theirs = coarse(randomised(timm.create_model("vit_base_patch16_224", **TIMM_SIZE | parts)))
    state = dict(theirs.state_dict())
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat(
        [torch.full((1, 1, 192), 0.375), state["pos_embed"]], dim=1
    )  # in the file [class] has a position
    torch.save(state | {"mask_token": torch.ones(1, 192)}, tmp_path / "dinov2.pth")
    theirs.load_state_dict(checkpoint_filter_fn(torch.load(tmp_path / "dinov2.pth"), theirs))
    checkpoint = from_file(tmp_path / "dinov2.pth")
    assert checkpoint.config.registers == 4 and checkpoint.config.class_position and checkpoint.config.pos_interp == "timm"
    assert_outputs(checkpoint.model(), theirs, lambda m, x: m(x), lambda m: m.blocks)


def test_timms_distilled_deit_by_name(randomised, tmp_path):
    from vit_model.checkpoint import from_timm

    theirs = randomised(timm.create_model("deit_tiny_distilled_patch16_224"))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    checkpoint = from_timm("deit_tiny_distilled_patch16_224", tmp_path / "w.pth")
    x = images((224, 224), 2)
    torch.testing.assert_close(checkpoint.model()(x), theirs(x), **FP32)
    assert len(checkpoint.labels) == 1000


def test_timms_clip_gives_the_common_space_and_not_five_hundred_classes(randomised, tmp_path):
    from vit_model.checkpoint import from_timm

    name = "vit_base_patch32_clip_quickgelu_224.openai"
    theirs = randomised(timm.create_model(name))
    theirs.head.bias.data.zero_()  # as timm converts the projection
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    checkpoint = from_timm(name, tmp_path / "w.pth")
    assert checkpoint.config.num_classes == 0 and checkpoint.config.embedding_dim == 512 and checkpoint.config.gelu == "quick"
    x = images((224, 224), 2)
    torch.testing.assert_close(checkpoint.model()(x), theirs(x), **FP32)
    theirs.head.bias.data += 1
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    assert from_timm(name, tmp_path / "w.pth").config.num_classes == 512  # a bias that was trained: these are classes


# ---- what can be wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"gelu": "tanh"}, {"gelu": "quick"}, {"norm_eps": 1e-6}],
    ids=lambda w: "-".join(map(str, next(iter(w.items())))),
)
def test_a_wrong_switch_of_a_hugging_face_model_is_caught(wrong, randomised, tmp_path):
    make, call, _ = HF["ViT"]
    theirs = randomised(make())
    theirs.save_pretrained(tmp_path)
    checkpoint = hf_models.from_folder(tmp_path)
    model = replace(checkpoint, config=replace(checkpoint.config, **wrong)).model()
    x = images().double()
    with torch.no_grad():
        assert not torch.allclose(model.double()(x), call(theirs.double(), x), **FP64)


def test_the_config_json_beside_a_file_says_its_switches(randomised, tmp_path):
    theirs = randomised(HF["ViT with the tanh GELU"][0]())
    theirs.save_pretrained(tmp_path / "with")
    whole = hf_models.from_folder(tmp_path / "with")
    named = replace(whole.config, gelu="exact", norm_eps=1e-5)
    config, _ = weights_for(named, tmp_path / "with" / "model.safetensors")
    assert (config.gelu, config.norm_eps) == ("tanh", 1e-12)
    assert from_file(tmp_path / "with" / "model.safetensors").fingerprint() == whole.fingerprint()
    alone = (tmp_path / "with" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    assert weights_for(named, alone)[0] == replace(named, pos_interp="hf")
    with pytest.raises(ModelError, match="do not tell the GELU"):
        from_file(alone)


def test_a_size_that_nobody_published_does_not_tell_its_heads(tmp_path):
    theirs = timm.create_model("vit_base_patch16_224", **TIMM_SIZE | {"embed_dim": 256, "num_heads": 8, "num_classes": 0})
    torch.save(mae(theirs), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="256 wide and 12 deep with an MLP of 1024, no published size"):
        from_file(tmp_path / "w.pth")


def test_a_missing_tensor_is_called_what_it_is_called_in_the_file(randomised, tmp_path):
    randomised(HF["ViT"][0]()).save_pretrained(tmp_path)
    state = load_weights(tmp_path / "model.safetensors")
    del state["vit.encoder.layer.1.attention.attention.key.bias"], state["vit.layernorm.weight"]
    state |= {"vit.surplus": torch.ones(1), "classifier.weight": torch.ones(4, 32)}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as error:
        hf_models.from_folder(tmp_path)
    message = str(error.value)
    assert "2 missing (encoder.layer.1.attention.attention.key.bias, layernorm.weight)" in message, message
    assert "1 unexpected (surplus)" in message and "1 misfitting (head.bias is (5,) in the file, (4,) in the model)" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "beit"}, "model_type is 'beit'; known are vit, deit"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; known are gelu"),
        ({"num_attention_heads": 5}, "width 32 is not a multiple of heads 5"),
        ({"image_size": 48}, r"position_embeddings|pos_embed is \(1, 17, 32\)"),
        ({"id2label": ["a"]}, "config.json cannot be used: AttributeError"),
        ({"num_attention_heads": "4"}, "heads is '4'"),
    ],
)
def test_a_config_json_that_cannot_be_used_says_why(change, message, randomised, tmp_path):
    randomised(HF["ViT"][0]()).save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | change))
    with pytest.raises(ModelError, match=message) as error:
        hf_models.from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_heads_that_are_not_ours_to_compute_are_refused_and_not_dropped(randomised, tmp_path):
    theirs = randomised(transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**SIZE, mlp_ratio=2, num_labels=3)))
    theirs.save_pretrained(tmp_path)  # its head takes [class] and the mean of the patches
    with pytest.raises(ModelError, match=r"2 unexpected \(classifier.weight, classifier.bias\)|unexpected \(classifier"):
        hf_models.from_folder(tmp_path)


def test_a_swiglu_is_refused_by_name(randomised, tmp_path):
    theirs = transformers.Dinov2Model(transformers.Dinov2Config(**SIZE, use_swiglu_ffn=True))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has a SwiGLU instead of an MLP with GELU"):
        hf_models.from_folder(tmp_path)


def test_a_file_of_nobody_known_lists_the_formats_and_its_first_tensors(tmp_path):
    torch.save({"layer.a": torch.ones(1), "layer.b": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"in no format known here \(Google's.*MAE.*\); its first tensors are layer.a, layer.b"):
        from_file(tmp_path / "w.pth")


def test_a_position_table_that_is_no_square_asks_for_the_architecture(randomised, tmp_path):
    theirs = timm.create_model("vit_base_patch16_224", **TIMM_SIZE | {"img_size": (32, 48), "num_classes": 0})
    torch.save(mae(theirs), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="table has 25 rows, which is no square; name the architecture"):
        from_file(tmp_path / "w.pth")


def test_a_torchscript_archive_is_refused_as_code(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(ModelError, match="TorchScript archive, which holds code; save its state_dict"):
        load_weights(tmp_path / "w.pt")
