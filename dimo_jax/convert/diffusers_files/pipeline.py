"""Images in one step, for diffusers: a generator distilled by Di[M]O (arXiv 2503.15457).

DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True) loads it; of packages it needs
torch, diffusers and, for prompts, transformers. Axes: B images, L tokens, D width, V ids, T text.
"""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None


class OneStepPipeline(DiffusionPipeline):
    """What generators of prompts and of classes have in common.

    An image starts from tokens of which a share is [MASK] and the others are random, and from noise
    on their embeddings; then every token is drawn at once.
    """

    # As it was loaded: another folder's file may take its place in diffusers' cache of modules.
    _source = Path(__file__).read_bytes()

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write model_index.json and the code, so that what is saved can be loaded again."""
        super().save_config(save_directory, *args, **kwargs)
        # diffusers names the modules as they are in its cache, and leaves their code behind.
        folder = Path(save_directory)
        fields = json.loads((folder / self.config_name).read_text())
        fields["_class_name"] = ["pipeline", type(self).__name__]
        (folder / "pipeline.py").write_bytes(self._source)
        for name, module in self.components.items():
            if source := getattr(module, "_source", None):
                file = type(module).__module__.rpartition(".")[2]
                fields[name] = [file, type(module).__name__]
                (folder / name / f"{file}.py").write_bytes(source)
        (folder / self.config_name).write_text(json.dumps(fields, indent=2) + "\n")

    def _images(
        self,
        logits_of: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor],
        num: int,
        asked: dict[str, Any],
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw `num` images; `asked` has the arguments that all generators take."""
        self._check(asked)
        with torch.no_grad():
            tokens = self._tokens(logits_of, num, asked)
            images = tokens
            if asked["output_type"] != "latent":
                kind = asked["output_type"]
                images = VaeImageProcessor(do_normalize=False).postprocess(
                    self._pixels(tokens), kind
                )
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images) if asked["return_dict"] else (images,)

    def _check(self, asked: dict[str, Any]) -> None:
        size = self.config.settings["image_size"]
        for name in ("height", "width"):
            if asked[name] not in (None, size):
                raise ValueError(
                    f"{name} is {asked[name]}, but this generator makes images of {size} x {size} "
                    "pixels and no others; leave it out"
                )
        for name, why in (
            ("num_inference_steps", "the generator was distilled into one step, and makes one"),
            ("guidance_scale", "guidance was distilled into the generator, which needs none"),
        ):
            if asked[name] not in (None, 1):
                warnings.warn(f"{name}={asked[name]} is ignored: {why}", stacklevel=4)

    def _tokens(self, logits_of: Any, num: int, asked: dict[str, Any]) -> Tensor:
        """Draw tokens [B, L]."""
        settings, device = self.config.settings, self._execution_device
        length, codes = settings["num_tokens"], self.transformer.config.codebook_size

        def draw(kind: Callable[..., Tensor], *shape: int) -> Tensor:
            """Random numbers [B, *shape]; with a generator for each image it has its own."""
            given = asked["generator"]
            some = given if isinstance(given, list) else [given]
            if len(some) not in (1, num):
                raise ValueError(f"there are {len(some)} generators, expected 1 or {num}")
            parts = [
                kind(num // len(some), *shape, generator=one, device=one.device if one else device)
                for one in some
            ]
            return torch.cat(parts).to(device)

        def given(name: str, *shape: int) -> Tensor | None:
            found = asked[name]
            if found is not None and tuple(found.shape) != (num, *shape):
                raise ValueError(
                    f"{name} has the shape {list(found.shape)}, expected {[num, *shape]}"
                )
            return None if found is None else found.to(device)

        ids = given("latents", length)
        if ids is None:
            low, high = settings["ratio"]
            count = torch.round((low + (high - low) * draw(torch.rand)) * length)
            ids = (draw(torch.rand, length) * codes).long().clamp(max=codes - 1)
            rank = draw(torch.rand, length).argsort(1).argsort(1)
            ids = torch.where(rank < count[:, None], codes, ids)  # the id of [MASK]
        noise, sigma = asked["noise"], settings["sigma"]

        def perturb(embeddings: Tensor) -> Tensor:
            nonlocal noise
            shape = embeddings.shape[1:]
            noise = draw(torch.randn, *shape) if noise is None else given("noise", *shape)
            noisy = math.sqrt(1 - sigma**2) * embeddings.float() + sigma * noise
            return noisy.to(embeddings.dtype)

        logits = logits_of(ids, perturb).float() / settings["temperature"]
        logits = _top_p(_top_k(logits, settings["top_k"]), settings["top_p"])
        gumbel = given("gumbel", *logits.shape[1:])
        if gumbel is None:
            uniform = draw(torch.rand, *logits.shape[1:])
            gumbel = -torch.log(-torch.log(uniform.clamp(min=torch.finfo().tiny)))
        return (logits + gumbel).argmax(-1)

    def _pixels(self, tokens: Tensor) -> Tensor:
        """Decode to [B, C, H, W] in [0, 1]."""
        vqvae, side = self.vqvae, math.isqrt(tokens.shape[1])
        config, dtype = vqvae.config, vqvae.dtype
        upcast = dtype == torch.float16 and config.get("force_upcast", False)
        if upcast:
            vqvae.float()
        # An id past the codes, of a network that predicts [MASK] too, is the last one.
        grid = tokens.clamp(max=self.transformer.config.codebook_size - 1).unflatten(
            1, (side, side)
        )
        channels = config.get("vq_embed_dim") or config.get("latent_channels")
        shape = (*grid.shape, channels)
        pixels = vqvae.decode(grid, force_not_quantize=True, shape=shape).sample.float()
        if upcast:
            vqvae.to(dtype)
        signed = self.config.settings["signed_pixels"]
        return (pixels / 2 + 0.5 if signed else pixels).clamp(0, 1)


def _top_k(logits: Tensor, k: int) -> Tensor:
    """Exclude all but the k largest; 0: none."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    least = logits.topk(k).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def _top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most probable ids whose mass reaches p; 1: all."""
    if p >= 1:
        return logits
    descending = logits.sort(descending=True).values
    probs = descending.softmax(-1)
    before = probs.cumsum(-1) - probs
    last = (before < p).sum(-1, keepdim=True).clamp(min=1) - 1
    return logits.masked_fill(logits < descending.gather(-1, last), -torch.inf)


class TextToImagePipeline(OneStepPipeline):
    """Prompts -> images.

    Args:
        vqvae: tokens -> pixels.
        text_encoder: CLIP's text tower with its projection.
        tokenizer: of the prompts.
        transformer: tokens and text -> logits.
        settings: what the generator was trained for, plain values of model_index.json.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vqvae"

    def __init__(self, vqvae, text_encoder, tokenizer, transformer, settings=None):
        super().__init__()
        parts = {"vqvae": vqvae, "text_encoder": text_encoder, "tokenizer": tokenizer}
        self.register_modules(**parts, transformer=transformer)
        self.register_to_config(settings=settings)

    def __call__(
        self,
        prompt: str | list[str],
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        noise: Tensor | None = None,
        gumbel: Tensor | None = None,
        micro_conditions: Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 1,
        guidance_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images of prompts.

        Args:
            prompt: one or several.
            num_images_per_prompt: of each, one after the other.
            generator: of all random numbers, or one for each image.
            latents: ids [B, L] to start from, the codebook's size for [MASK]; None: random.
            noise: of the embeddings, [B, L, D]; None: random.
            gumbel: added to the logits before the largest is taken, [B, L, V]; None: random.
            micro_conditions: width, height, two coordinates of the crop, aesthetic score; None: the
                generator's.
            height: of the images; there is one.
            width: likewise.
            num_inference_steps: 1; others are ignored with a warning.
            guidance_scale: 1; likewise.
            output_type: "pil", "np", "pt", or "latent" for the tokens.
            return_dict: False for a tuple.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [text for text in prompts for _ in range(num_images_per_prompt)]
        num, device = len(prompts), self._execution_device

        def logits_of(ids: Tensor, perturb: Callable[[Tensor], Tensor]) -> Tensor:
            states, pooled = self.encode_prompt(prompts)
            values = micro_conditions or self.config.settings["micro_conditions"]
            micro = torch.tensor([values] * num, dtype=torch.float32, device=device)
            time = (ids >= self.transformer.config.codebook_size).float().mean(1)
            time = time * (self.config.settings["timestep"] == "ratio")
            return self.transformer(ids, states, pooled, micro, time, perturb)

        return self._images(logits_of, num, locals())

    def encode_prompt(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Return the states [B, T, E] of the last layer but one, and the projected text [B, P]."""
        length = self.tokenizer.model_max_length
        options = {"padding": "max_length", "truncation": True, "max_length": length}
        ids = self.tokenizer(prompts, return_tensors="pt", **options).input_ids
        found = self.text_encoder(ids.to(self._execution_device), output_hidden_states=True)
        return found.hidden_states[-2], found.text_embeds


class ClassToImagePipeline(OneStepPipeline):
    """Classes -> images.

    Args:
        vqvae: tokens -> pixels.
        transformer: tokens and classes -> logits.
        settings: what the generator was trained for, plain values of model_index.json.
    """

    model_cpu_offload_seq = "transformer->vqvae"

    def __init__(self, vqvae, transformer, settings=None):
        super().__init__()
        self.register_modules(vqvae=vqvae, transformer=transformer)
        self.register_to_config(settings=settings)

    def __call__(
        self,
        class_labels: int | list[int],
        generator: Generators = None,
        latents: Tensor | None = None,
        noise: Tensor | None = None,
        gumbel: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 1,
        guidance_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw an image of each class.

        Args:
            class_labels: whole numbers from 0.
            generator: of all random numbers, or one for each image.
            latents: ids [B, L] to start from, the codebook's size for [MASK]; None: random.
            noise: of the embeddings, [B, L, D]; None: random.
            gumbel: added to the logits before the largest is taken, [B, L, V]; None: random.
            height: of the images; there is one.
            width: likewise.
            num_inference_steps: 1; others are ignored with a warning.
            guidance_scale: 1; likewise.
            output_type: "pil", "np", "pt", or "latent" for the tokens.
            return_dict: False for a tuple.
        """
        labels = torch.atleast_1d(torch.as_tensor(class_labels, device=self._execution_device))
        classes = self.transformer.config.num_classes
        if labels.is_floating_point() or not ((labels >= 0) & (labels < classes)).all():
            raise ValueError(
                f"class_labels is {labels.tolist()}; they are whole numbers from 0 to {classes - 1}"
            )

        def logits_of(ids: Tensor, perturb: Callable[[Tensor], Tensor]) -> Tensor:
            return self.transformer(ids, labels, perturb)

        return self._images(logits_of, len(labels), locals())
