"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929) in PyTorch.

This package knows no Ray, no storage and no command line. It imports nothing here, so that light processes can use
`vit_model.config` and `vit_model.patches` without loading torch.

    config.py      ViTConfig, Preprocessing, the VARIANTS table
    patches.py     patchify, unpatchify (numpy and torch)
    position.py    the learned position table and its resampling
    encoder.py     Attention, MLP, Block: Eq. 2 and 3
    model.py       VisionTransformer: Eq. 1 and 4
    checkpoint.py  load, save, check, fingerprint; timm's models
    inference.py   the fast path: folded normalisation, bf16
"""
