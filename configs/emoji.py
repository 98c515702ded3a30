"""OpenMoji's emoji, 32x32 in colour, offline: teacher, one-step generator, report.

pip install -e ".[emoji]"
python -m dimo_jax.main --config=configs/emoji.py --workdir=runs/emoji

The distillation's settings are those of the digits' patches, and not tuned to these pictures yet;
the config as it stands was not run to its end.
"""

from dimo_jax.config import default_config


def get_config():
    config = default_config()
    config.title = "Emoji"
    # By Unicode's groups. Six in ten are people, most of them in six tones of skin.
    config.data.update(name="emoji", num_classes=9, balanced=False)
    # Of 512 codes the hearts come out brown and small letters are lost; of 2,048 they do not. 2x2
    # pixels with 512 codes are finer still, at four times the tokens.
    config.tokenizer.update(
        name="patches", image_size=32, channels=3, patch_size=4, codebook_size=2048
    )
    config.model.update(width=128, depth=4, heads=4, mlp_dim=512, dropout=0.0)
    config.model.predict_mask_id = False

    config.pretrain.update(num_steps=1500, batch_size=64, dropout=False, ema_decay=0.998)
    config.pretrain.optimizer.update(
        learning_rate=2e-3, schedule="cosine", warmup_steps=100, beta2=0.99
    )

    distill = config.distill
    distill.update(num_steps=1500, batch_size=32, guidance=1.0, reduction="mean_masked")
    distill.ema_decay = 0.998
    distill.sigma = 0.01
    distill.divergence = {"name": "jeffrey", "parameter": 0.3}
    distill.auxiliary.sample = "reuse"
    shared = {"schedule": "cosine", "warmup_steps": 50, "beta1": 0.5, "beta2": 0.99}
    optimizers = distill.generator.optimizer, distill.auxiliary.optimizer
    for optimizer, rate in zip(optimizers, (5e-4, 2e-3), strict=True):
        optimizer.update(learning_rate=rate, **shared)

    config.interim.update(every_steps=250, num_samples=1000)
    config.classifier.update(channels=(16, 32, 64), num_steps=600)
    config.evaluation.update(
        num_samples=1000, batch_size=100, sweep_num_samples=250, guidances=(1.0, 1.5)
    )
    return config
