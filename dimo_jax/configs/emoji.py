"""OpenMoji's emoji, 32x32 in colour, offline: teacher, one-step generator, report.

pip install -e ".[emoji]"
python -m dimo_jax.main --config=configs/emoji.py --workdir=runs/emoji
python -m dimo_jax.main --config=configs/emoji.py:text --workdir=runs/emoji_text

The argument chooses what they are drawn from: "class", Unicode's groups, or "text", their names.
docs/emoji.md has what a run by class gave, and what was tried.
"""

from dimo_jax.config import default_config

VARIANTS = ("class", "text")


def get_config(variant: str = "class"):
    if variant not in VARIANTS:
        raise ValueError(f"configs/emoji.py has the variants {' and '.join(VARIANTS)}")
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
    distill.update(batch_size=32, guidance=1.0, reduction="mean_masked")
    # An eighth of the deviation of this teacher's embeddings, 0.083, as with the digits.
    distill.sigma = 0.01
    distill.divergence = {"name": "jeffrey", "parameter": 0.3}
    distill.auxiliary.sample = "reuse"
    # Adam: Muon, better on the digits, is at 400 steps at almost twice the distance in features.
    shared = {"schedule": "cosine", "warmup_steps": 50, "beta1": 0.5, "beta2": 0.99}
    optimizers = distill.generator.optimizer, distill.auxiliary.optimizer
    for optimizer, rate in zip(optimizers, (5e-4, 2e-3), strict=True):
        optimizer.update(learning_rate=rate, **shared)
    if variant == "class":
        distill.update(num_steps=800, ema_decay=0.99)
        # The teacher's own best in sampling, and the generator's: half the distance in features.
        distill.guidance = 1.5
        # From fewer random tokens than in training, where 0.6 of them are [MASK]: a third less of
        # the distance in features, more of the classes, and somewhat less recall.
        config.sampler.update(temperature=0.7, ratio=(0.8, 0.8))
    else:
        distill.update(batch_size=16, num_steps=1500, ema_decay=0.998)

    config.interim.update(every_steps=200, num_samples=500)
    config.classifier.update(channels=(16, 32, 64), num_steps=600)
    config.evaluation.update(
        num_samples=500, seeds=(0, 1), batch_size=100, sweep_num_samples=125,
        guidances=(1.0, 1.5), choice_temperatures=(4.5,),
    )  # fmt: skip
    if variant == "text":
        _take_names(config)
    return config


def _take_names(config):
    """Take the names as prompts: a small Meissonic, with a text tower that is trained with it."""
    config.title = "Emoji by their names"
    config.data.update(condition="text", balanced=True)
    config.model = {
        "name": "meissonic", "vocabulary": 2049, "width": 96, "depth": 1, "single_depth": 3,
        "heads": 3, "mlp_dim": 384, "text_length": 24, "text_dim": 96, "pooled_dim": 96,
        "rope_dims": (8, 12, 12), "merge": False, "timestep": "ratio",
    }  # fmt: skip
    config.text_encoder = {
        "bundle": "",
        "activation": "gelu",
        "projection": 96,
        # 510 merges: the frequent words are one id each. The longest name has 21.
        "text": {
            "vocabulary": 1024, "context": 24, "width": 96, "depth": 2, "heads": 3, "mlp_dim": 384
        },
    }  # fmt: skip
    # 36 times through the pictures: of 1,000 steps the loss on names that were never seen is lower,
    # and the pictures are worse (docs/emoji.md).
    config.pretrain.update(num_steps=4000, batch_size=32)
    config.distill.guidance = 1.5
    # Two images of each name of the test split.
    config.evaluation.update(
        num_samples=762, sweep_num_samples=190, seeds=(0, 1), choice_temperatures=(4.5,),
        guidances=(1.0, 2.0), batch_size=127,
    )  # fmt: skip
    config.logging.picture_prompts = (
        "red heart", "a red heart", "cat with party hat", "green apple", "flag: France",
        "blue square", "smiling face with hearts", "a house on fire",
    )  # fmt: skip
