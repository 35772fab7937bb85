"""List the named models: the sizes of the papers, as "S/16", and the hybrids. Imports no torch."""

from wordsworth.vit_model.config import ModelError, ViTConfig, as_size, nearest

# name: (width, depth, mlp_dim, heads). Ti and S: DeiT and AugReg. B, L and H: Table 1 of the paper.
# M, So400m, g and G: "Scaling Vision Transformers" (arXiv 2106.04560) and its successors, in big_vision's
# sizes.
VARIANTS = {
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "H": (1280, 32, 5120, 16),
    "So400m": (1152, 27, 4304, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
}
PATCH_SIZES = (8, 14, 16, 32)

# name: (size, pixels along a side of one token, bottlenecks of each stage). Despite its name, R+Ti/16 has one
# token for 32 x 32 pixels: the root halves the image twice, then patches of 8 x 8 follow (so are AugReg's
# released weights).
HYBRIDS = {
    "R+Ti/16": ("Ti", 32, ()),
    "R26+S/32": ("S", 32, (2, 2, 2, 2)),
    "R26+B/32": ("B", 32, (2, 2, 2, 2)),
    "R50+B/16": ("B", 16, (3, 4, 9)),
    "R50+L/32": ("L", 32, (3, 4, 6, 3)),
}


def variant(name: str, image_size: int | tuple[int, int] = 224, num_classes: int = 1000) -> ViTConfig:
    """Return the config of a named variant, such as "S/16": a size, a slash, the side of a patch in pixels.

    Raises:
        ModelError: the name is unknown, or the patch size does not divide the image size.
    """
    known: dict[str, tuple[str, int, tuple[int, ...] | None]] = {}
    for size in VARIANTS:
        for patch_size in PATCH_SIZES:
            known[f"{size}/{patch_size}"] = (size, patch_size, None)
    known |= HYBRIDS
    if name not in known:
        raise ModelError(
            f"unknown variant {name!r}; did you mean {nearest(name, known)!r}? "
            f"Known: {', '.join(VARIANTS)} with a patch size of {', '.join(map(str, PATCH_SIZES))}, such as "
            f"'S/16', and the hybrids {', '.join(HYBRIDS)}"
        )
    size, patch_size, resnet = known[name]
    width, depth, mlp_dim, heads = VARIANTS[size]
    return ViTConfig(
        image_size=as_size(image_size),
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_dim=mlp_dim,
        num_classes=num_classes,
        resnet=resnet,
    )


def variant_name(config: ViTConfig) -> str | None:
    """Return the name of the variant with this size, patch size and stem, or None for any other size."""
    sizes = {numbers: name for name, numbers in VARIANTS.items()}
    size = sizes.get((config.width, config.depth, config.mlp_dim, config.heads))
    if size is None:
        return None
    if config.resnet is not None:
        hybrids = {parts: name for name, parts in HYBRIDS.items()}
        return hybrids.get((size, config.patch_size, config.resnet))
    return f"{size}/{config.patch_size}" if config.patch_size in PATCH_SIZES else None
