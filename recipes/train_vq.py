"""Training of the VQ model for fixed patch codes: the decoder (tokens -> picture), then the encoder.

Knows pictures and codes. Knows nothing of text.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE, JanusVQVAEConvUpsample

from recipes.patch_codes import CODE_DIM, CODES, PatchCodes, fit_patch_codes
from recipes.pictures.render import save_grid
from recipes.pictures.scenes import Palette, build_palette, sample_scenes
from recipes.pictures.taxonomy import Taxonomy, load_taxonomy
from recipes.precision import mixed
from recipes.sizes import Sizes


def vq_config() -> JanusVQVAEConfig:
    """A small geometry of the published class: 64 x 64 pixels, 8 x 8 tokens.

    The class normalises in 32 groups: at 32 channels that is one channel a group, which erases every flat colour and
    leaves the model at the mean picture. So the base is 64 channels, paid for with no residual blocks in the encoder.
    """
    return JanusVQVAEConfig(
        embed_dim=CODE_DIM,
        num_embeddings=CODES,
        latent_channels=128,
        base_channels=64,
        channel_multiplier=[1, 1, 1, 4],
        num_res_blocks=0,
        num_patches=8,
        projection_dim=384,
        image_token_embed_dim=384,
    )


class Kernels:
    """The kernels of a channels-last model as matrices [out, h w in] that share their storage, as Muon takes them."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._kernels = [p for p in parameters if p.ndim == 4]
        self.matrices = [nn.Parameter(self._flat(k.data)) for k in self._kernels]

    def hand_over_gradients(self) -> None:
        """Give each matrix its kernel's gradient."""
        for kernel, matrix in zip(self._kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else self._flat(kernel.grad)

    @staticmethod
    def _flat(kernel: Tensor) -> Tensor:
        return kernel.permute(0, 2, 3, 1).flatten(1)


class Updates:
    """Muon for kernels, AdamW for the rest, one cosine schedule."""

    def __init__(self, parameters: list[nn.Parameter], steps: int, rate: float = 1e-3) -> None:
        self._parameters, self._steps = parameters, steps
        self._kernels = Kernels(parameters)
        self._optimisers = [
            torch.optim.Muon(self._kernels.matrices, lr=rate, weight_decay=1e-3, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([p for p in parameters if p.ndim != 4], lr=rate / 2, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self._rates = [group["lr"] for o in self._optimisers for group in o.param_groups]

    def apply(self, i: int) -> None:
        """Use the gradients at step i, then clear them."""
        scale = min(1, (i + 1) / 30) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * i / self._steps)))
        groups = [g for o in self._optimisers for g in o.param_groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * scale
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._kernels.hand_over_gradients()
        for optimiser in self._optimisers:
            optimiser.step()
        for parameter in self._parameters:
            parameter.grad = None


def picture_loss(drawn: Tensor, target: Tensor) -> Tensor:
    """L1 and squared error, plus the L1 of horizontal and vertical differences, which keeps outlines crisp."""
    loss = (drawn - target).abs().mean() + 2 * (drawn - target).square().mean()
    for dim in (2, 3):
        loss = loss + 0.5 * (drawn.diff(dim=dim) - target.diff(dim=dim)).abs().mean()
    return loss


def load_vq(path: Path) -> JanusVQVAE:
    """The VQ model that `train` left at `path`, frozen."""
    model = JanusVQVAE(vq_config())
    model.load_state_dict(torch.load(path))
    model.train(False).requires_grad_(False)
    return model


def fresh_model(codes: PatchCodes) -> JanusVQVAE:
    """A model with these codes and PyTorch's own start for convolutions; the class's own (std 0.02) is too small."""
    model = JanusVQVAE(vq_config())
    nn.Module.to(model, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    model.quantize.embedding.weight.data.copy_(codes.codes)
    return model


def draw_tokens(model: JanusVQVAE, tokens: Tensor) -> Tensor:
    """Pictures [B, 3, 64, 64] in [-1, 1] of tokens [B, 64] int64, in one batch, without gradients."""
    with torch.no_grad():
        return model.decode(cast(torch.LongTensor, tokens)).float().clamp(-1, 1)


class PositionHeads(nn.Module):
    """Auxiliary read-outs of where a pixel lies, from the features after each upsampling; thrown away after training.

    The class's decoder has no positional input: nearest upsampling makes the pixels of a patch alike, and where a pixel
    lies must be inferred from the zero padding. Asking for it outright teaches that first.
    """

    def __init__(self, widths: tuple[int, ...] = (256, 64, 64)) -> None:
        super().__init__()
        sizes = [16 * 2**i for i in range(len(widths))]
        self.targets = [self._places(size, bits + 1) for bits, size in enumerate(sizes)]
        self.heads = nn.ModuleList([nn.Conv2d(w, len(t), 1) for w, t in zip(widths, self.targets, strict=True)])

    @staticmethod
    def _places(size: int, bits: int) -> Tensor:
        """Column and row, as ramps in [-1, 1] and as the lowest `bits` bits of their numbers: [2 + 2 bits, S, S]."""
        number = torch.arange(size)
        lines = [torch.linspace(-1, 1, size)] + [((number >> k) % 2) * 2.0 - 1 for k in range(bits)]
        columns = torch.stack(lines)[:, None, :].expand(-1, size, -1)
        return torch.cat([columns, columns.transpose(1, 2)])

    def loss(self, levels: list[Tensor]) -> Tensor:
        """Sum over the levels' features [B, C, S, S] of the mean squared error."""
        losses = [
            (head(features.float()) - target).square().mean()
            for head, features, target in zip(self.heads, levels, self.targets, strict=True)
        ]
        return torch.stack(losses).sum()


def draw_levels(model: JanusVQVAE, z: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The decoder on codes [B, D, 8, 8]: pictures [B, 3, 64, 64] and the features after each upsampling."""
    levels: list[Tensor] = []
    upsamplers = [layer for layer in model.decoder.modules() if isinstance(layer, JanusVQVAEConvUpsample)]
    hooks = [layer.register_forward_hook(lambda _layer, _inputs, made: levels.append(made)) for layer in upsamplers]
    try:
        return model.decoder(model.post_quant_conv(z)), levels
    finally:
        for hook in hooks:
            hook.remove()


def train_decoder(
    model: JanusVQVAE, codes: PatchCodes, palette: Palette, taxonomy: Taxonomy, steps: int, out: Path, batch: int = 5
) -> None:
    """Teach `model` in place to draw pictures from their tokens. Many small batches: the start is bound by steps."""
    positions = PositionHeads()
    parameters = [*model.post_quant_conv.parameters(), *model.decoder.parameters(), *positions.parameters()]
    updates, generator, began = Updates(parameters, steps), torch.Generator().manual_seed(0), time.monotonic()
    average, recent = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99)), 0.0  # type: ignore[no-untyped-call]
    for i in range(steps):
        target = palette.compose(sample_scenes(taxonomy, batch, generator))
        z = codes.codes[codes.tokens(target)].view(batch, 8, 8, CODE_DIM).permute(0, 3, 1, 2)
        with mixed():
            drawn, levels = draw_levels(model, z)
        loss = picture_loss(drawn.float(), target)
        torch.autograd.backward(loss + 0.2 * positions.loss(levels))
        updates.apply(i)
        average.update_parameters(model)
        recent = loss.item() if i == 0 else 0.98 * recent + 0.02 * loss.item()
        if i % 50 == 0 or i == steps - 1:
            print(f"decoder step {i} loss {recent:.4f} {time.monotonic() - began:.0f} s", flush=True)
    model.load_state_dict(average.module.state_dict())
    originals = palette.compose(sample_scenes(taxonomy, 32, generator))
    save_grid(torch.cat([originals, draw_tokens(model, codes.tokens(originals))]), 16, out / "vq.png")


def train_encoder(
    model: JanusVQVAE, codes: PatchCodes, palette: Palette, taxonomy: Taxonomy, steps: int, batch: int = 64
) -> None:
    """Teach `model` in place to find the tokens of a picture."""
    parameters = [*model.encoder.parameters(), *model.quant_conv.parameters()]
    updates, generator = Updates(parameters, steps), torch.Generator().manual_seed(1)
    for i in range(steps):
        pictures = palette.compose(sample_scenes(taxonomy, batch, generator))
        target = codes.embed((F.unfold(pictures, 8, stride=8)).transpose(1, 2)).flatten(0, 1)
        with mixed():
            z = model.quant_conv(model.encoder(pictures.contiguous(memory_format=torch.channels_last)))
        z = F.normalize(z.float(), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        torch.autograd.backward((1 - (z * target).sum(1)).mean())
        updates.apply(i)
        if i % 50 == 0 or i == steps - 1:
            same = (z @ codes.codes.T).argmax(1) == (target @ codes.codes.T).argmax(1)
            cosine = (z * target).sum(1).mean().item()
            print(
                f"encoder step {i} cosine {cosine:.4f} same token {same.float().mean().item():.3f}",
                flush=True,
            )


def train(npm: Path, out: Path, sizes: Sizes) -> None:
    """Leave out/codes.pt, out/vq.pt (state dict) and out/vq.png (originals over reconstructions)."""
    torch.manual_seed(0)
    taxonomy = load_taxonomy()
    palette = build_palette(taxonomy, npm)
    codes = fit_patch_codes(palette, taxonomy, sizes.code_scenes, sizes.code_rounds)
    torch.save(asdict(codes), out / "codes.pt")
    model = fresh_model(codes)
    train_decoder(model, codes, palette, taxonomy, sizes.decoder, out)
    train_encoder(model, codes, palette, taxonomy, sizes.encoder)
    torch.save(model.state_dict(), out / "vq.pt")
