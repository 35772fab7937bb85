"""Compute the Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929) in PyTorch.

This package knows no Ray, no storage and no command line. Nothing is imported here: light processes use
`wordsworth.vit_model.config` and `wordsworth.vit_model.patches` without loading torch.

    config.py               ViTConfig, Preprocessing
    variants.py cost.py     the named sizes; parameters and multiplications
    patches.py              patchify, unpatchify (numpy and torch)
    position.py             the positions and their resampling
    encoder.py              Attention, MLP, Block: Eq. 2 and 3
    model.py                VisionTransformer: Eq. 1 and 4
    hybrid.py               the ResNet stem
    weights.py              files of tensors, checked against a config
    checkpoint.py           model folders: load, save, fingerprint
    inference.py            the fast path: folded normalisation, bf16
    parallel.py             activation checkpointing, compilation, sharding
    objectives.py masked_autoencoder.py     the losses that an encoder is trained for
    analysis.py few_shot.py neighbours.py recall.py     measures of a trained encoder
    foreign/                other people's weights; load.py is the door
"""
