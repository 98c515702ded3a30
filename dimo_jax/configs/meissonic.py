"""Text to image, 1024x1024: Meissonic distilled into one step.

python -m dimo_jax.main --config=configs/meissonic.py --workdir=runs/meissonic \
    --config.teacher.bundle=bundles/meissonic/transformer --config.prompts.path=prompts.txt

Tokenizer and text encoder are taken from beside the teacher. The argument chooses the settings:
"paper" follows the equations where scripts and paper differ; "512" is a teacher for 512 pixels,
which merges no tokens; "smoke" is the same program on a CPU in under a minute, tiny and with random
weights. "Code" names the authors' scripts, "yaml" their DIMO_Meissonic.yaml, "P" the paper (arXiv
2503.15457).
"""

from dimo_jax.config import default_config

VARIANTS = ("default", "paper", "512", "smoke")
# yaml, distil_neg_prompt: the teacher is much better with it.
NEGATIVE = (
    "worst quality, low quality, low res, blurry, distortion, watermark, logo, signature, text, "
    "jpeg artifacts, signature, sketch, duplicate, ugly, identifying mark"
)


def get_config(variant: str = "default"):
    if variant not in VARIANTS:
        raise ValueError(f"configs/meissonic.py has the variants {', '.join(VARIANTS)}")
    config = default_config()
    config.title = "Meissonic, text to image"
    config.seed = 42  # yaml
    config.data.update(name="prompts", num_classes=0)
    config.compute_dtype = "bfloat16"  # Code: bf16 autocast, float32 weights
    config.remat = "full"  # Code: gradient checkpointing
    config.scan_layers = True  # 42 blocks: two of them are compiled

    config.prompts.negative = NEGATIVE
    # Code: the same for every image, as in the teacher's pipeline.
    config.prompts.micro_conditions = (1024.0, 1024.0, 0.0, 0.0, 6.0)

    # Sizes for a plan or a benchmark; a run takes those of its bundles.
    config.model = _model()
    config.tokenizer = {"bundle": "", "name": "vq_model", "image_size": 1024}
    config.text_encoder = {
        "bundle": "",
        "activation": "gelu",
        "projection": 1024,
        "text": {
            "vocabulary": 49_408, "context": 77, "width": 1024, "depth": 24, "heads": 16,
            "mlp_dim": 4096,
        },
    }  # fmt: skip

    distill = config.distill
    distill.num_steps = 20_000  # yaml; evaluate.sh takes the checkpoint of step 13,000
    distill.batch_size, distill.parts = 16, 8  # Code: 2 on one GPU, accumulated 8 times
    distill.ratio = (0.5, 0.5)  # yaml r_init
    distill.sigma = 0.3  # yaml; on the whole output of the embedding, before the merging
    distill.temperature = 1.0  # P appendix C: all three temperatures are 1
    distill.divergence.update(name="forward_kl", parameter=0.0)  # yaml; diverges beyond -0.1, 0.2
    distill.guidance = 4.0  # yaml; P 5: u + 4 (c - u), where u is the negative prompt
    # Code casts a ratio below 1 to an integer: all three networks see time 0, and the released
    # weights need that. "ratio" is what the authors meant.
    distill.timestep = "zero"
    distill.reduction = "sum"  # Code: summed over tokens and vocabulary, divided by the batch
    distill.weighting = "one"  # Code: the paper's w(t) is commented out
    distill.ema_decay, distill.ema_warmup = 0.9999, True  # P appendix C; min(0.9999, (1+n)/(10+n))
    mask = {"schedule": "cosine", "kind": "exact", "min_ratio": 0.02, "max_ratio": 0.98}  # Code
    distill.mask.update(mask)

    # Code, fix_emb_layer: `embed` and `mlm_layer` of all networks.
    frozen = ("token_embedding", "embed_norm", "embed_out", "head_in", "head_norm", "head_out")
    shared = {
        "name": "adam",
        "learning_rate": 1e-6,  # P appendix C, both networks
        "schedule": "constant",  # Code
        "warmup_steps": 100,  # Code, linear
        "beta1": 0.9,  # P appendix C
        "beta2": 0.999,
        "eps": 1e-6,  # Code: under bf16; 1e-8 in float32
        "weight_decay": 0.0,
        "frozen": frozen,
    }
    distill.generator.optimizer.update(**shared, clip_norm=1.0)  # Code: generator only
    distill.auxiliary.optimizer.update(**shared, clip_norm=0.0)
    distill.auxiliary.mask.update(mask)
    distill.auxiliary.update(
        sample="fresh",  # Code: another batch of prompts; P algorithm 1 reuses the sample
        updates=1,  # Code: fake_rounds
        positions="masked",  # Code
        reduction="mean_batch",  # Code: torch's cross-entropy over the batch's masked positions
        label_smoothing=0.1,  # Code; the teacher was trained without: see "paper"
        condition_drop=0.0,  # Code: the auxiliary is always conditional
    )

    config.checkpoint.update(save_every_steps=500, keep=2)
    config.evaluation.batch_size = 4  # of the grids drawn in training
    config.logging.update(log_every_steps=10, images_every_steps=500, picture_steps=32)

    if variant == "paper":
        distill.reduction = "mean_masked"  # P equation 5: 1 / L_M
        distill.weighting = "paper"  # P appendix C
        distill.auxiliary.sample = "reuse"  # P algorithm 1: one sample for both updates
        distill.auxiliary.label_smoothing = 0.0  # not in P
    elif variant == "512":
        config.title = "Text to image, 512x512"
        config.prompts.micro_conditions = (512.0, 512.0, 0.0, 0.0, 6.0)
        config.tokenizer.image_size = 512
        config.model.merge = False
    elif variant == "smoke":
        _shrink(config)
    return config


def _model():
    return {
        "name": "meissonic", "vocabulary": 8256, "width": 1024, "depth": 14, "single_depth": 28,
        "heads": 8, "mlp_dim": 4096, "text_length": 77, "text_dim": 1024, "pooled_dim": 1024,
        "rope_dims": (16, 56, 56), "merge": True, "timestep": "zero",
    }  # fmt: skip


def _shrink(config):
    """Return a small run: few blocks, random weights, own prompts, few steps; the rest stays."""
    config.title = "Meissonic smoke test: random weights"
    config.teacher.random = config.fast_compile = True
    config.prompts.texts = (
        "a red ball on top of a blue cube",
        "a photo of four cats",
        'a sign that says "one step"',
        "ein gelber Hund / 黄色い犬",
        "a watercolour of a lighthouse at dusk, seen from the sea",
    )
    config.model.update(
        vocabulary=40, width=32, depth=1, single_depth=2, heads=2, mlp_dim=128, text_length=16,
        text_dim=16, pooled_dim=16, rope_dims=(4, 6, 6),
    )  # fmt: skip
    config.tokenizer.update(
        image_size=32, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, z_channels=4, embed_dim=4,
        n_embed=32,
    )  # fmt: skip
    config.text_encoder.projection = 16
    config.text_encoder.text.update(
        vocabulary=514, context=16, width=16, depth=2, heads=2, mlp_dim=32
    )
    config.distill.update(num_steps=6, batch_size=4, parts=2)
    config.distill.generator.optimizer.warmup_steps = 2
    config.distill.auxiliary.optimizer.warmup_steps = 2
    config.checkpoint.save_every_steps = 3
    config.logging.update(
        log_every_steps=1, images_every_steps=6, picture_steps=4, tensorboard=False
    )
