"""Scikit-learn's handwritten digits, 8x8, offline: teacher, one-step generator, report.

python -m dimo_jax.main --config=configs/digits.py --workdir=runs/digits
python -m dimo_jax.main --config=configs/digits.py:patch --workdir=runs/digits_patch

The argument chooses the tokenizer: "gray" (17 gray levels, 64 tokens, lossless) or "patch" (2x2
patches, 128 codes, 16 tokens). "di4c" is another method on gray levels, a student of several steps.
"""

from dimo_jax.config import default_config


def get_config(variant: str = "gray"):
    config = default_config()
    config.title = "Handwritten digits"
    config.data.num_classes = 10
    if variant in ("gray", "di4c"):
        config.tokenizer.update(name="gray_levels", image_size=8)
    elif variant == "patch":
        config.tokenizer.update(
            name="patches", image_size=8, channels=1, patch_size=2, codebook_size=128
        )
    else:
        raise ValueError(
            f"configs/digits.py has the variants gray, patch and di4c, not {variant!r}"
        )

    config.model.update(width=64, depth=3, heads=2, mlp_dim=256, dropout=0.0)
    config.model.predict_mask_id = False

    config.pretrain.update(num_steps=2000, batch_size=64, dropout=False, ema_decay=0.997)
    config.pretrain.optimizer.update(
        learning_rate=2e-3, schedule="cosine", warmup_steps=100, beta2=0.99
    )

    distill = config.distill
    distill.update(num_steps=1800, batch_size=32, guidance=1.0, reduction="mean_masked")
    distill.ema_decay = 0.995
    # This teacher's embeddings have a deviation of 0.08: the paper's sigma of 0.1 drowns the tokens
    # that the generator starts from, and doubles its pixel distance after 1,200 steps.
    distill.sigma = 0.01
    distill.divergence = {"name": "jeffrey", "parameter": 0.3}
    # One sample for both networks: a quarter cheaper than a fresh one, and no worse at this size.
    distill.auxiliary.sample = "reuse"
    # An auxiliary four times as fast as the generator: one as slow diverges here.
    shared = {"schedule": "cosine", "warmup_steps": 50, "beta1": 0.5, "beta2": 0.99}
    optimizers = distill.generator.optimizer, distill.auxiliary.optimizer
    if variant == "di4c":
        distill.update(method="mixture", num_steps=600, batch_size=16)
        distill.mixture.update(width=64, replicas=8, steps=(2, 4, 1))
        optimizers[0].update(learning_rate=1e-3, **{**shared, "beta1": 0.9})
    elif variant == "gray":
        for optimizer, rate in zip(optimizers, (1.2e-3, 5e-3), strict=True):
            optimizer.update(name="muon", learning_rate=rate, **shared)
    else:
        # A quarter of the tokens at a quarter of the cost: there is time for three times as many.
        distill.update(num_steps=3000, batch_size=64)
        for optimizer, rate in zip(optimizers, (5e-4, 2e-3), strict=True):
            optimizer.update(learning_rate=rate, **shared)
    # One step: lowers the feature distance by a tenth against 1.0; from 0.6 on nothing is gained.
    # Two steps and more: 0.7 doubles that distance, and takes a fifth of the recall (docs/di4c.md).
    config.sampler.temperature = 1.0 if variant == "di4c" else 0.7

    config.interim.update(every_steps=200, num_samples=500)
    config.evaluation.update(
        num_samples=1000, batch_size=100, sweep_num_samples=250, guidances=(1.0, 1.25)
    )
    return config
