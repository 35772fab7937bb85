"""Write the objectives without classes down once more, from their papers on timm's layers."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import PatchEmbed as TimmPatchEmbed
from torch import nn

from wordsworth.vit_model.config import ViTConfig


class PublishedMAE(nn.Module):
    """Masked autoencoder written from the published algorithm on timm's layers, images in, noise given."""

    def __init__(self, config: ViTConfig, width: int, depth: int, heads: int):
        super().__init__()
        self.config, D = config, config.width
        self.patch_embed = TimmPatchEmbed(config.image_size, config.patch_size, 3, D)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_patches, D))
        self.blocks = nn.ModuleList(block(D, config.heads, config.mlp_dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.decoder = nn.Module()
        self.decoder.embed, self.decoder.predict = nn.Linear(D, width), nn.Linear(width, config.patch_dim)
        self.decoder.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder.blocks = nn.ModuleList(block(width, heads, 4 * width) for _ in range(depth))
        self.decoder.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder.register_buffer("positions", torch.tensor(self.sincos(width), dtype=torch.float32)[None])

    def sincos(self, width):
        table = [[0.0] * width]
        for y in range(self.config.grid[0]):
            for x in range(self.config.grid[1]):
                angles = [[at / 10000 ** (i / (width / 4)) for i in range(width // 4)] for at in (x, y)]
                table.append([f(a) for side in angles for f in (math.sin, math.cos) for a in side])
        return table

    def forward(self, images, noise):
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        B, N, _ = x.shape
        keep = int(N * 0.25)
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        x = torch.stack([x[b, shuffle[b, :keep]] for b in range(B)])
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).repeat(B, 1, 1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder.embed(self.norm(x))
        tokens = torch.cat([x[:, 1:], self.decoder.mask_token.repeat(B, N - keep, 1)], dim=1)
        tokens = torch.stack([tokens[b, restore[b]] for b in range(B)])
        x = torch.cat([x[:, :1], tokens], dim=1) + self.decoder.positions
        for block in self.decoder.blocks:
            x = block(x)
        predicted = self.decoder.predict(self.decoder.norm(x))[:, 1:]
        return self.loss(images, predicted, shuffle[:, keep:])

    def loss(self, images, predicted, masked):
        p, columns, total, count = self.config.patch_size, self.config.grid[1], 0.0, 0
        for b in range(len(images)):
            for n in masked[b].tolist():
                top, left = n // columns * p, n % columns * p
                target = images[b, :, top : top + p, left : left + p].permute(1, 2, 0).flatten()
                mean = target.sum() / len(target)
                variance = ((target - mean) ** 2).sum() / (len(target) - 1)
                total = total + (
                    (predicted[b, n] - (target - mean) / (variance + 1e-6) ** 0.5) ** 2
                ).sum() / len(target)
                count += 1
        return total / count


class PublishedMaskedPatches(nn.Module):
    """Masked patch prediction of B.1.2 on timm's layers: images in, places and other patches given."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config, D = config, config.width
        self.patch_embed = TimmPatchEmbed(config.image_size, config.patch_size, 3, D)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_patches, D))
        self.blocks = nn.ModuleList(block(D, config.heads, config.mlp_dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, D))
        self.predict = nn.Linear(D, 512)

    def forward(self, images, pixels, order, steps):
        """Return the loss.

        Args:
            images: (B, 3, H, W), normalised.
            pixels: (B, 3, H, W), uint8.
            order: (B, N), patches of each image; the first half of them is corrupted.
            steps: (B, others), how far behind a corrupted patch its other patch lies.
        """
        B, N = order.shape
        count = round(N / 2)
        masks, others = round(0.8 * count), round(0.1 * count)
        embedded = self.patch_embed(images)
        rows = []
        for b in range(B):
            patches = list(embedded[b])
            for at in range(masks):
                patches[order[b, at]] = self.mask_token[0, 0]
            for at in range(others):
                place = int(order[b, masks + at])
                patches[place] = embedded[b, (place + int(steps[b, at])) % N]
            rows.append(torch.stack([self.cls_token[0, 0], *patches]))
        x = torch.stack(rows) + self.pos_embed
        for layer in self.blocks:
            x = layer(x)
        logits = self.predict(self.norm(x))[:, 1:]
        losses = []
        for b in range(B):
            for place in order[b, :count].tolist():
                losses.append(F.cross_entropy(logits[b, place], self.colour(pixels[b], place)))
        return torch.stack(losses).mean()

    def colour(self, pixels, place):
        """Return the 3-bit mean colour of a patch of (3, H, W), uint8."""
        p, columns = self.config.patch_size, self.config.grid[1]
        top, left = place // columns * p, place % columns * p
        means = pixels[:, top : top + p, left : left + p].double().mean((1, 2)) / 255
        red, green, blue = (min(7, math.floor(8 * mean)) for mean in means.tolist())
        return torch.tensor(64 * red + 8 * green + blue)


def block(width: int, heads: int, mlp_dim: int) -> nn.Module:
    """Return timm's block with the epsilon of Google's code."""
    return TimmBlock(
        width, heads, mlp_ratio=mlp_dim / width, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)
    )
