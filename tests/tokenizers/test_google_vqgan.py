import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dimo_jax import tokenizers
from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks import google as tables
from dimo_jax.convert.networks import layouts
from dimo_jax.tokenizers import google_vqgan

SMALL = {
    "name": "google_vqgan", "image_size": 16, "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 2,
    "embed_dim": 6, "n_embed": 40,
}  # fmt: skip


class Residual(nn.Module):
    def __init__(self, channels, out_channels):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(32, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        # The slip: of the block's output, not of its input.
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


class Side(nn.Module):
    def __init__(self, decode, config):
        super().__init__()
        ch, factors, num = config["ch"], config["ch_mult"], config["num_res_blocks"]
        low, self.decode = ch * factors[-1], decode
        blocks = nn.ModuleList([Residual(low, low) for _ in range(num)])
        if decode:
            self.conv_in = nn.Conv2d(config["embed_dim"], low, 3, padding=1)
        else:
            self.conv_in = nn.Conv2d(3, ch, 3, padding=1, bias=False)
        self.mid, levels = blocks, nn.ModuleList()
        for level, factor in enumerate(factors):
            incoming = factors[min(level + 1, len(factors) - 1)] if decode else 1
            if not decode and level > 0:
                incoming = factors[level - 1]
            part, out = nn.Module(), ch * factor
            part.block = nn.ModuleList(
                [Residual(out if i else ch * incoming, out) for i in range(num)]
            )
            if decode and level > 0:
                part.upsample_conv = nn.Conv2d(out, out, 3, padding=1)
            levels.append(part)
        self.add_module("up" if decode else "down", levels)
        end = ch * factors[0] if decode else low
        self.norm_out = nn.GroupNorm(32, end, eps=1e-6)
        size = (3, 3) if decode else (config["embed_dim"], 1)
        self.conv_out = nn.Conv2d(end, *size, padding=size[1] // 2)

    def forward(self, x):
        x = self.conv_in(x)
        levels = reversed(self.up) if self.decode else self.down
        for block in self.mid if self.decode else ():
            x = block(x)
        for i, part in enumerate(levels):
            for block in part.block:
                x = block(x)
            if self.decode and hasattr(part, "upsample_conv"):
                x = part.upsample_conv(F.interpolate(x, scale_factor=2, mode="nearest"))
            if not self.decode and i < len(levels) - 1:
                x = F.avg_pool2d(x, 2)
        for block in () if self.decode else self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class TorchGoogleVqgan(nn.Module):
    """The PyTorch port's keys, out of torch.nn parts; pixels in [0, 1], channels first."""

    def __init__(self, config):
        super().__init__()
        self.encoder, self.decoder = Side(False, config), Side(True, config)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(config["n_embed"], config["embed_dim"])

    @torch.no_grad()
    def encode(self, x):
        z = self.encoder(x).permute(0, 2, 3, 1)
        # In float64 and from the differences: not by the formula under test.
        codes = self.quantize.embedding.weight.double()
        return z.numpy(), torch.cdist(z.double().flatten(0, 2), codes).argmin(-1).view(len(x), -1)

    @torch.no_grad()
    def decode(self, tokens):
        side = round(tokens.shape[1] ** 0.5)
        z = self.quantize.embedding(tokens).permute(0, 2, 1).unflatten(2, (side, side))
        return self.decoder(z).permute(0, 2, 3, 1).numpy()


def shapes_of(config):
    return jax.eval_shape(tokenizers.build(config).init, jax.random.key(0))


@functools.cache
def pair():
    """A PyTorch module with random weights, and our parameters from its state dict."""
    generator = torch.Generator().manual_seed(0)
    module = TorchGoogleVqgan(SMALL).eval()
    for key, value in module.state_dict().items():
        r = torch.empty_like(value).uniform_(-1, 1, generator=generator)
        if key.endswith("bias"):
            value.copy_(0.1 * r)
        elif value.ndim == 1:
            value.copy_(1 + 0.2 * r)
        else:
            value.copy_(r * (3 / value[0].numel()) ** 0.5)
    state = {k: v.numpy() for k, v in module.state_dict().items()}
    entries = tables.tokenizer_entries(SMALL, "torch")
    return module, layouts.to_params(entries, state, shapes_of(SMALL))


def some_images(batch, size):
    return np.random.default_rng(size).uniform(size=(batch, size, size, 3)).astype(np.float32)


# The parameters do not depend on the image's side: twice the side is what 512 is to 256.
@pytest.mark.parametrize("size", [16, 32])
def test_encoding_is_that_of_pytorch(size):
    module, params = pair()
    tokenizer = tokenizers.build({**SMALL, "image_size": size})

    @jax.jit  # one program, for the compilation's time
    def encode(params, images):
        z = google_vqgan.latents(tokenizer.config, params, images)
        return z, tokenizer.encode(params, images)

    images = some_images(3, size)
    found, tokens = encode(params, images)
    z, codes = module.encode(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found, z, atol=3e-5)
    np.testing.assert_array_equal(tokens, codes)
    assert len(np.unique(tokens)) > 5  # else equal codes say little


@pytest.mark.parametrize("size", [16, 32])
def test_decoding_is_that_of_pytorch(size):
    module, params = pair()
    tokenizer = tokenizers.build({**SMALL, "image_size": size})
    shape = (3, tokenizer.num_tokens)
    tokens = np.random.default_rng(3).integers(0, 40, shape, np.int32)
    expected = module.decode(torch.from_numpy(tokens))
    assert expected.max() > 1 and expected.min() < 0  # there is something to clip

    @jax.jit
    def decode(params, tokens):
        pixels = google_vqgan.pixels(tokenizer.config, params, tokens)
        return pixels, tokenizer.decode(params, tokens)

    pixels, decoded = decode(params, tokens)
    np.testing.assert_allclose(pixels, expected, atol=3e-5)
    np.testing.assert_allclose(decoded, np.clip(expected, 0, 1), atol=3e-5)


def test_the_published_size_has_the_parameters_and_keys_of_the_port():
    config = tokenizers.build({"name": "google_vqgan"}).config
    with torch.device("meta"):
        state = TorchGoogleVqgan(config).state_dict()
    params = shapes_of(config)
    expected = {k: tuple(v.shape) for k, v in state.items()}
    assert layouts.state_shapes(tables.tokenizer_entries(config, "torch"), params) == expected
    assert sum(x.size for x in jax.tree.leaves(params)) == 54_515_587
    assert params["encoder"]["level_2_block_0"]["shortcut_conv"]["kernel"].shape == (1, 1, 256, 256)


def test_the_interface():
    params = pair()[1]
    tokenizer = tokenizers.build(SMALL)
    assert (tokenizer.grid, tokenizer.codebook_size) == ((4, 4), 40)
    assert tokenizer.config == SMALL
    tokens = tokenizer.encode(params, some_images(2, 16))
    assert tokens.shape == (2, 16) and tokens.dtype == np.int32
    last = jnp.full((2, 16), 39, jnp.int32)
    decoded = tokenizer.decode(params, last)
    assert decoded.shape == (2, 16, 16, 3) and decoded.dtype == np.float32
    np.testing.assert_array_equal(tokenizer.decode(params, last + 1), decoded)  # the mask id
    with pytest.raises(ValueError, match=re.escape("images have shape (2, 32, 32, 3)")):
        tokenizer.encode(params, some_images(2, 32))
    with pytest.raises(ValueError, match=re.escape("tokens have shape (1, 7)")):
        tokenizer.decode(params, np.zeros((1, 7), np.int32))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ch": 48}, "ch of the tokenizer 'google_vqgan' is 48, expected a multiple of 32"),
        ({"ch_mult": []}, r"ch_mult .* is \[\], expected a factor for each level"),
        ({"ch_mult": [1, 0]}, r"ch_mult\[1\] .* is 0, expected an int >= 1"),
        ({"image_size": 18}, "image_size .* is 18, expected a multiple of 4"),
        ({"n_embed": 0}, "n_embed .* is 0, expected an int >= 1"),
        ({"z_channels": 256}, r"'google_vqgan' has no fields \['z_channels'\]"),
    ],
)
def test_bad_sizes_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        tokenizers.build({**SMALL, **changed})
