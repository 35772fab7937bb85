"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929) in PyTorch.

This package knows no Ray, no storage and no command line. It imports nothing here, so that light processes can use
`wordsworth.vit_model.config` and `wordsworth.vit_model.patches` without loading torch.

    config.py      ViTConfig, Preprocessing, the VARIANTS table
    patches.py     patchify, unpatchify (numpy and torch)
    position.py    the learned position table and its resampling
    encoder.py     Attention, MLP, Block: Eq. 2 and 3
    model.py       VisionTransformer: Eq. 1 and 4
    hybrid.py      the ResNet stem
    checkpoint.py  model folders: load, save, check, fingerprint
    foreign.py     other people's weights; formats.py, renames.py, timm_models.py, hf_models.py and convert.py belong to it
    inference.py   the fast path: folded normalisation, bf16
    objectives.py  what an encoder is trained for; analysis.py, few_shot.py: what it has learned
    parallel.py    checkpointing, compilation, sharding
"""
