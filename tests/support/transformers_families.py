"""Tiny models of transformers, of many families: all that an image folder of the hub may hold."""

from collections.abc import Callable

import torch
import transformers as hf
from torch import nn

K = {"num_labels": 5}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
MLP = {"intermediate_size": 64}
SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
CONVNEXT = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
BEIT = VIT | MLP | {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
BIT = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 2}
LEVIT = {
    "image_size": 64,
    "hidden_sizes": [16, 16, 16],
    "num_attention_heads": [2, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [4, 4, 4],
}
PVT = {
    "image_size": 64,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
}
HIERA = {
    "image_size": [32, 32],
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "patch_kernel": [7, 7],
    "patch_stride": [4, 4],
    "patch_padding": [3, 3],
    "query_stride": [2, 2],
    "masked_unit_size": [4, 4],
    "masked_unit_attention": [True, False],
    "num_query_pool": 1,
}
# What a model of texts and images takes of texts, as small as it may be.
TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "projection_dim": 12,
}
VISION = VIT | MLP | {"projection_dim": 12}

# name: (class, its config, image size)
CLASSIFIERS: dict[str, tuple[type, Callable, int]] = {
    "beit": (hf.BeitForImageClassification, lambda: hf.BeitConfig(**BEIT, **K), 32),
    "bit": (hf.BitForImageClassification, lambda: hf.BitConfig(**BIT, **K), 32),
    "clip": (
        hf.CLIPForImageClassification,
        lambda: hf.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=12, **K),
        32,
    ),
    "convnext": (hf.ConvNextForImageClassification, lambda: hf.ConvNextConfig(**CONVNEXT, **K), 32),
    "convnextv2": (hf.ConvNextV2ForImageClassification, lambda: hf.ConvNextV2Config(**CONVNEXT, **K), 32),
    "cvt": (
        hf.CvtForImageClassification,
        lambda: hf.CvtConfig(embed_dim=[8, 16, 16], num_heads=[1, 2, 2], depth=[1, 2, 3], **K),
        64,
    ),
    "data2vec-vision": (
        hf.Data2VecVisionForImageClassification,
        lambda: hf.Data2VecVisionConfig(**BEIT, **K),
        32,
    ),
    "dinov2": (hf.Dinov2ForImageClassification, lambda: hf.Dinov2Config(**VIT, mlp_ratio=2, **K), 32),
    "dinov2_with_registers": (
        hf.Dinov2WithRegistersForImageClassification,
        lambda: hf.Dinov2WithRegistersConfig(**VIT, mlp_ratio=2, **K),
        32,
    ),
    "efficientnet": (
        hf.EfficientNetForImageClassification,
        lambda: hf.EfficientNetConfig(
            image_size=32,
            width_coefficient=0.25,
            depth_coefficient=0.2,
            hidden_dim=320,
            dropout_rate=0.0,
            **K,
        ),
        32,
    ),
    "focalnet": (
        hf.FocalNetForImageClassification,
        lambda: hf.FocalNetConfig(
            image_size=32,
            patch_size=2,
            embed_dim=8,
            depths=[1, 1],
            focal_levels=[2, 2],
            focal_windows=[3, 3],
            **K,
        ),
        32,
    ),
    "hgnet_v2": (
        hf.HGNetV2ForImageClassification,
        lambda: hf.HGNetV2Config(
            embedding_size=8,
            stem_channels=[3, 8, 8],
            stage_in_channels=[8, 8, 16, 16],
            stage_mid_channels=[8, 8, 8, 8],
            stage_out_channels=[8, 16, 16, 16],
            stage_num_blocks=[1, 1, 1, 1],
            hidden_sizes=[8, 16, 16, 16],
            **K,
        ),
        64,
    ),
    "hiera": (hf.HieraForImageClassification, lambda: hf.HieraConfig(**HIERA, **K), 32),
    "ijepa": (hf.IJepaForImageClassification, lambda: hf.IJepaConfig(**VIT, **MLP, **K), 32),
    "levit": (hf.LevitForImageClassification, lambda: hf.LevitConfig(**LEVIT, **K), 64),
    "levit, two heads": (hf.LevitForImageClassificationWithTeacher, lambda: hf.LevitConfig(**LEVIT, **K), 64),
    "metaclip_2": (
        hf.MetaClip2ForImageClassification,
        lambda: hf.MetaClip2Config(vision_config=VISION, text_config=TEXT, projection_dim=12, **K),
        32,
    ),
    "mobilenet_v1": (
        hf.MobileNetV1ForImageClassification,
        lambda: hf.MobileNetV1Config(depth_multiplier=0.25, **K),
        64,
    ),
    "mobilenet_v2": (
        hf.MobileNetV2ForImageClassification,
        lambda: hf.MobileNetV2Config(depth_multiplier=0.25, **K),
        64,
    ),
    "mobilevit": (
        hf.MobileViTForImageClassification,
        lambda: hf.MobileViTConfig(
            image_size=64, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32], **K
        ),
        64,
    ),
    "mobilevitv2": (
        hf.MobileViTV2ForImageClassification,
        lambda: hf.MobileViTV2Config(image_size=64, width_multiplier=0.25, **K),
        64,
    ),
    "perceiver": (
        hf.PerceiverForImageClassificationLearned,
        lambda: hf.PerceiverConfig(
            num_latents=8, d_latents=32, d_model=512, num_self_attends_per_block=1, image_size=16, **K
        ),
        16,
    ),
    "poolformer": (
        hf.PoolFormerForImageClassification,
        lambda: hf.PoolFormerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], **K),
        64,
    ),
    "pvt": (hf.PvtForImageClassification, lambda: hf.PvtConfig(**PVT, **K), 64),
    "pvt_v2": (hf.PvtV2ForImageClassification, lambda: hf.PvtV2Config(**PVT, **K), 64),
    "regnet": (
        hf.RegNetForImageClassification,
        lambda: hf.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, **K),
        32,
    ),
    "resnet": (hf.ResNetForImageClassification, lambda: hf.ResNetConfig(**RESNET, **K), 32),
    "segformer": (
        hf.SegformerForImageClassification,
        lambda: hf.SegformerConfig(
            hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], **K
        ),
        64,
    ),
    "siglip": (
        hf.SiglipForImageClassification,
        lambda: hf.SiglipConfig(vision_config=VIT | MLP, text_config=TEXT, **K),
        32,
    ),
    "swiftformer": (
        hf.SwiftFormerForImageClassification,
        lambda: hf.SwiftFormerConfig(embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1], **K),
        64,
    ),
    "swin": (hf.SwinForImageClassification, lambda: hf.SwinConfig(**SWIN, **K), 32),
    "swinv2": (hf.Swinv2ForImageClassification, lambda: hf.Swinv2Config(**SWIN, **K), 32),
    "textnet": (
        hf.TextNetForImageClassification,
        lambda: hf.TextNetConfig(
            stem_out_channels=8,
            hidden_sizes=[8, 8, 16, 16, 16],
            conv_layer_kernel_sizes=[[[3, 3]], [[3, 3]], [[3, 1]], [[3, 3]]],
            conv_layer_strides=[[2], [2], [2], [1]],
            **K,
        ),
        64,
    ),
    "vit, another activation": (
        hf.ViTForImageClassification,
        lambda: hf.ViTConfig(**VIT, **MLP, hidden_act="relu", **K),
        32,
    ),
    "vit_msn": (hf.ViTMSNForImageClassification, lambda: hf.ViTMSNConfig(**VIT, **MLP, **K), 32),
}


def pooled(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=x).pooler_output.flatten(1)


def class_token(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=x).last_hidden_state[:, 0]


def mean(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=x).last_hidden_state.flatten(2).mean(2)


def token_mean(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=x).last_hidden_state.mean(1)


def features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.get_image_features(pixel_values=x).pooler_output


def unmasked(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    model.config.mask_ratio = 0.0  # the order of the patches is random, and does not matter to [class]
    return model(pixel_values=x).last_hidden_state[:, 0]


BERT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}

# name: (class, its config, image size, how transformers' own code reads the embedding)
ENCODERS: dict[str, tuple[type, Callable, int, Callable]] = {
    "aimv2": (
        hf.Aimv2Model,
        lambda: hf.Aimv2Config(vision_config=VIT | MLP, text_config=TEXT, projection_dim=12),
        32,
        features,
    ),
    "aimv2_vision_model": (hf.Aimv2VisionModel, lambda: hf.Aimv2VisionConfig(**VIT, **MLP), 32, pooled),
    "align": (
        hf.AlignModel,
        lambda: hf.AlignConfig(
            text_config=BERT,
            vision_config={"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.2},
        ),
        32,
        features,
    ),
    "altclip": (
        hf.AltCLIPModel,
        lambda: hf.AltCLIPConfig(
            vision_config=VISION, text_config=BERT | {"project_dim": 12}, projection_dim=12
        ),
        32,
        features,
    ),
    "beit": (hf.BeitModel, lambda: hf.BeitConfig(**BEIT), 32, pooled),
    "bit": (hf.BitModel, lambda: hf.BitConfig(**BIT), 32, pooled),
    "chinese_clip": (
        hf.ChineseCLIPModel,
        lambda: hf.ChineseCLIPConfig(vision_config=VISION, text_config=BERT, projection_dim=12),
        32,
        features,
    ),
    "convnext": (hf.ConvNextModel, lambda: hf.ConvNextConfig(**CONVNEXT), 32, pooled),
    "dinov2, SwiGLU": (
        hf.Dinov2Model,
        lambda: hf.Dinov2Config(**VIT, mlp_ratio=2, use_swiglu_ffn=True),
        32,
        pooled,
    ),
    "dinov3_convnext": (
        hf.DINOv3ConvNextModel,
        lambda: hf.DINOv3ConvNextConfig(**CONVNEXT),
        32,
        pooled,
    ),
    "dinov3_vit": (
        hf.DINOv3ViTModel,
        lambda: hf.DINOv3ViTConfig(**VIT, **MLP, num_register_tokens=2),
        32,
        pooled,
    ),
    "hiera": (hf.HieraModel, lambda: hf.HieraConfig(**HIERA), 32, pooled),
    "ijepa": (hf.IJepaModel, lambda: hf.IJepaConfig(**VIT, **MLP), 32, token_mean),
    "levit": (hf.LevitModel, lambda: hf.LevitConfig(**LEVIT), 64, pooled),
    "metaclip_2": (
        hf.MetaClip2Model,
        lambda: hf.MetaClip2Config(vision_config=VISION, text_config=TEXT, projection_dim=12),
        32,
        features,
    ),
    "pixio": (hf.PixioModel, lambda: hf.PixioConfig(**VIT, mlp_ratio=2), 32, pooled),
    "poolformer": (
        hf.PoolFormerModel,
        lambda: hf.PoolFormerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
        64,
        mean,
    ),
    "pvt": (hf.PvtModel, lambda: hf.PvtConfig(**PVT), 64, class_token),
    "pvt_v2": (hf.PvtV2Model, lambda: hf.PvtV2Config(**PVT), 64, mean),
    "resnet": (hf.ResNetModel, lambda: hf.ResNetConfig(**RESNET), 32, pooled),
    "swin": (hf.SwinModel, lambda: hf.SwinConfig(**SWIN), 32, pooled),
    "vit_mae": (hf.ViTMAEModel, lambda: hf.ViTMAEConfig(**VIT, **MLP), 32, unmasked),
    "vit_mae, before fine-tuning": (
        hf.ViTMAEForPreTraining,
        lambda: hf.ViTMAEConfig(
            **VIT, **MLP, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2
        ),
        32,
        lambda model, x: unmasked(model.vit, x),
    ),
    "vit_msn": (hf.ViTMSNModel, lambda: hf.ViTMSNConfig(**VIT, **MLP), 32, class_token),
}


# Those that our own ViT computes.
OURS: dict[str, tuple[type, Callable, int, Callable]] = {
    "clip": (
        hf.CLIPVisionModelWithProjection,
        lambda: hf.CLIPVisionConfig(**VISION),
        32,
        lambda model, x: model(pixel_values=x).image_embeds,
    ),
    "deit": (
        hf.DeiTForImageClassification,
        lambda: hf.DeiTConfig(**VIT, **MLP, **K),
        32,
        lambda model, x: model(pixel_values=x).logits,
    ),
    "dinov2": (hf.Dinov2Model, lambda: hf.Dinov2Config(**VIT, mlp_ratio=2), 32, pooled),
    "dinov2_with_registers": (
        hf.Dinov2WithRegistersModel,
        lambda: hf.Dinov2WithRegistersConfig(**VIT, mlp_ratio=2),
        32,
        pooled,
    ),
    "siglip": (hf.SiglipVisionModel, lambda: hf.SiglipVisionConfig(**VIT, **MLP), 32, pooled),
    "vit": (
        hf.ViTForImageClassification,
        lambda: hf.ViTConfig(**VIT, **MLP, **K),
        32,
        lambda model, x: model(pixel_values=x).logits,
    ),
}


def randomised(model: nn.Module, call: Callable, size: int) -> nn.Module:
    """Make every parameter random, and give a BatchNorm the statistics of random images."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:  # signals of deep nets neither vanish nor explode: images stay apart
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(noise, alpha=0.1)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        if norms:
            for norm in norms:
                norm.momentum = None  # the plain average
            call(model.train(), torch.randn(8, 3, size, size, generator=generator))
    return model.eval()


def blotches(size: int, count: int = 3) -> torch.Tensor:
    """Return images (B, H, W, 3) of large blotches: noise looks the same to a net that averages."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 3, 3, generator=generator)
    images = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
