"""Own pictures, encoded: a MaskGit teacher is trained on them and distilled into one step.

python -m dimo_jax.encode --data=photos/ --tokenizer=bundles/vqgan_f16_1024 --output=tokens/photos
python -m dimo_jax.main --config=configs/pictures.py:small --config.data.path=tokens/photos \
    --config.tokenizer.bundle=bundles/vqgan_f16_1024 --workdir=runs/photos

The argument chooses the teacher's size: "tiny" (for a CPU), "small", "base" (published), "large".
The recipe of the teacher is that of its authors; the distillation is configs/imagenet.py's with the
paper's best divergence. "A.6" is MaskGit-PyTorch v1.0 (Trainer/vit.py), "Halton" the sizes of the
same authors' second version, "P" the paper (arXiv 2503.15457), "Code" its scripts. None of the
sizes was trained to its end here.
"""

from dimo_jax.config import default_config

# variant -> (width, depth, heads, mlp_dim, steps of the teacher, of the distillation). The authors
# train for 300 epochs in batches of 512, which are 750,000 steps on ImageNet; P 5.2 for 30,000.
VARIANTS = {
    "tiny": (128, 4, 4, 512, 5_000, 3_000),  # as configs/emoji.py
    "small": (512, 12, 8, 2048, 250_000, 30_000),  # Halton; its 6 heads do not divide 512
    "base": (768, 24, 16, 3072, 750_000, 30_000),  # the published teacher
    "large": (1024, 24, 16, 4096, 750_000, 30_000),  # Halton
}


def get_config(variant: str = "base"):
    if variant not in VARIANTS:
        raise ValueError(f"configs/pictures.py has the variants {', '.join(VARIANTS)}")
    width, depth, heads, mlp_dim, num_steps, num_distill_steps = VARIANTS[variant]
    config = default_config()
    config.title = "Own pictures"
    config.data.update(name="tokens", num_classes=-1, balanced=False)
    config.model.update(width=width, depth=depth, heads=heads, mlp_dim=mlp_dim)
    config.model.dropout = 0.1  # A.6
    # A.6 has a logit for [MASK], which a sampler then has to leave out; nothing is learned by it.
    config.model.predict_mask_id = False

    pretrain = config.pretrain
    pretrain.num_steps = num_steps
    pretrain.batch_size = 512  # README of A.6
    pretrain.positions = "all"  # A.6: masked and unmasked
    pretrain.reduction = "mean_batch"  # A.6: torch's cross-entropy
    pretrain.label_smoothing = 0.1  # A.6
    pretrain.condition_drop = 0.1  # A.6
    pretrain.dropout = True  # A.6
    pretrain.mask.update(schedule="arccos", kind="bernoulli")  # A.6: each token by itself
    pretrain.ema_decay, pretrain.ema_warmup = 0.9999, True  # as the distillation's
    pretrain.optimizer.update(
        name="adam",
        learning_rate=1e-4,  # A.6
        schedule="constant",  # A.6
        warmup_steps=1000,  # free; A.6 has none
        beta1=0.9,  # A.6
        beta2=0.96,  # A.6
        weight_decay=1e-5,  # A.6
        clip_norm=1.0,  # free: a batch of noise does not end weeks of training
    )

    distill = config.distill
    distill.num_steps = num_distill_steps
    distill.batch_size = 64  # P 5.2
    distill.ratio = (0.6, 0.6)  # P figure 5
    distill.sigma = 0.1  # P 4.3
    distill.guidance = 2.0  # P 5
    distill.divergence.update(name="jeffrey", parameter=-0.2)  # P 5.2: the best
    distill.reduction = "sum"  # Code
    distill.ema_decay = 0.9999  # P appendix C
    shared = {"learning_rate": 1e-5, "warmup_steps": 100, "beta2": 0.999}  # P appendix C
    shared["frozen"] = ("token_embedding", "position_embedding", "output_bias")  # P 4.3, Code
    distill.generator.optimizer.update(**shared, clip_norm=1.0)  # Code
    distill.auxiliary.optimizer.update(**shared)
    distill.auxiliary.update(sample="fresh", label_smoothing=0.1)  # Code

    if variant == "tiny":
        _quicken(config)
    else:
        config.compute_dtype = "bfloat16"  # A.6: half precision
    config.checkpoint.update(save_every_steps=1000, keep=2)
    config.logging.update(log_every_steps=50, images_every_steps=1000, loss_bins=4)
    config.evaluation.update(num_samples=1000, batch_size=64, sweep_num_samples=250)
    config.evaluation.guidances = (1.0, 2.0)
    return config


def _quicken(config):
    """Take the rates of the emoji, which are for few steps at this size."""
    config.pretrain.update(batch_size=64, ema_decay=0.998)
    config.pretrain.optimizer.update(
        learning_rate=2e-3, schedule="cosine", warmup_steps=100, beta2=0.99
    )
    distill = config.distill
    distill.update(batch_size=32, guidance=1.0, reduction="mean_masked", sigma=0.01)
    distill.update(ema_decay=0.998)
    distill.divergence.update(name="jeffrey", parameter=0.3)
    distill.auxiliary.sample = "reuse"
    shared = {"schedule": "cosine", "warmup_steps": 50, "beta1": 0.5, "beta2": 0.99}
    distill.generator.optimizer.update(learning_rate=5e-4, **shared)
    distill.auxiliary.optimizer.update(learning_rate=2e-3, **shared)
    config.classifier.update(channels=(16, 32, 64), num_steps=600)
