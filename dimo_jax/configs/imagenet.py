"""ImageNet 256x256, class-conditional: a MaskGit teacher distilled into one step.

python -m dimo_jax.main --config=configs/imagenet.py --workdir=runs/imagenet \
    --config.teacher.bundle=bundles/maskgit256 --config.tokenizer.bundle=bundles/vqgan_f16_1024

The argument chooses the settings: "released" differs from the default only by the dropout that the
authors' scripts leave active; "paper" follows the equations where scripts and paper differ; "512"
is the 512x512 teacher; "di4c" is another method, whose command has
--config.data.path=tokens/imagenet besides, what dimo_jax.encode made of ImageNet; "smoke" is the
same program on a CPU in under a minute, with two layers and random weights. "Code" names the
authors' scripts, "yaml" their DIMO_MaskGit.yaml, "P" the paper (arXiv 2503.15457).
"""

from dimo_jax.config import default_config

VARIANTS = ("default", "released", "paper", "512", "di4c", "smoke")


def get_config(variant: str = "default"):
    if variant not in VARIANTS:
        raise ValueError(f"configs/imagenet.py has the variants {', '.join(VARIANTS)}")
    config = default_config()
    config.title = "ImageNet 256x256, MaskGit teacher"
    config.seed = 3407  # yaml
    config.data.update(name="labels", num_classes=1000)  # no images: classes drawn uniformly, P 5
    config.compute_dtype = "bfloat16"  # Code: bf16 autocast, float32 weights

    # Sizes for a plan or a benchmark; a run takes those of its bundle.
    config.tokenizer.update(name="vqgan", image_size=256)

    distill = config.distill
    distill.num_steps = (
        30_000  # P 5.2 and the checkpoint that evaluate.sh names; yaml goes to 50,001
    )
    distill.batch_size = 64  # P 5.2; the script's 64 on one GPU
    distill.ratio = (0.6, 0.6)  # yaml r_init; best in P figure 5
    distill.sigma = 0.1  # yaml; embeddings only, before the positions (P 4.3)
    distill.temperature = 1.0  # P appendix C: all three temperatures are 1
    distill.mask.update(schedule="arccos", kind="exact")  # Code: round(L m) positions, at least 1
    distill.divergence.update(name="forward_kl", parameter=0.0)  # yaml beta 0; P's best is -0.2
    distill.guidance = 2.0  # yaml; P 5: u + 2 (c - u), constant
    distill.reduction = "sum"  # Code: summed over tokens and vocabulary, divided by the batch
    distill.weighting = "one"  # Code: the paper's w(t) is commented out
    distill.ema_decay, distill.ema_warmup = 0.9999, True  # P appendix C; min(0.9999, (1+n)/(10+n))

    # P 4.3: the noise is on the embeddings, so they stay; Code: positions and output bias too.
    frozen = ("token_embedding", "position_embedding", "output_bias")
    shared = {
        "name": "adam",
        "learning_rate": 1e-5,  # P appendix C, both networks
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
    distill.auxiliary.update(
        sample="fresh",  # Code; P algorithm 1 reuses the generator's sample
        updates=1,  # Code: fake_rounds
        positions="masked",  # Code
        reduction="mean_batch",  # Code: torch's cross-entropy over the batch's masked positions
        label_smoothing=0.1,  # Code; the teacher was trained with it too
        condition_drop=0.0,  # Code: the auxiliary is always conditional
    )

    config.sampler.temperature = 7.0  # P appendix D.1: best FID; 1 gives the best Inception Score
    config.checkpoint.update(save_every_steps=1000, keep=3)
    config.evaluation.batch_size = 64  # of the grids drawn in training
    # The showcase classes of the teacher's authors.
    labels = (1, 7, 282, 604, 724, 179, 751, 404, 850)
    config.logging.update(log_every_steps=50, images_every_steps=1000, picture_labels=labels)

    if variant == "released":
        # Code: .eval() of the teacher is commented out, and the others train with dropout 0.1.
        distill.teacher.dropout = distill.auxiliary.dropout = distill.generator.dropout = True
    elif variant == "paper":
        distill.divergence.update(name="jeffrey", parameter=-0.2)  # P 5.2: the best
        distill.reduction = "mean_masked"  # P equation 5: 1 / L_M
        distill.weighting = "paper"  # P appendix C
        distill.auxiliary.sample = "reuse"  # P algorithm 1: one sample for both updates
        distill.auxiliary.label_smoothing = 0.0  # not in P
    elif variant == "512":
        config.title = "ImageNet 512x512, MaskGit teacher"
        config.tokenizer.image_size = 512
    elif variant == "di4c":
        _di4c(config)
    elif variant == "smoke":
        _shrink(config)
    return config


def _di4c(config):
    """Sony's student of several steps (arXiv 2410.08709); "code" is the script of sony/di4c."""
    config.title = "ImageNet 256x256, di4c"
    config.seed = 42  # code
    config.data.update(name="tokens", num_test=0)  # no report in training
    distill = config.distill
    # Code: 2 images on each of 2 GPUs. How long its published student was trained is not published;
    # the paper's 120,000 images are as many steps.
    distill.update(method="mixture", num_steps=30_000, batch_size=4)
    distill.update(ema_decay=0.0, ema_warmup=False)  # code: none
    distill.mixture.update(
        width=512,  # code
        replicas=32,  # code: latent_bsize
        parts=8,  # ours: 9.4 GiB on an H100 at the peak, by dimo_jax.plan
        delta=0.05,  # code: r_delta
        teacher_steps=8,  # code
        choice_temperature=4.5,  # code: r_temp
        data_weight=0.1,  # code: alpha_const; 0 gives di4c without its data term
        data_schedule="sigmoid",  # code: alpha_t
        condition_drop=0.1,  # code
        steps=(4, 2, 8),  # code: step, in its README's evaluation; the others as comparisons
        guidance=7.0,  # code: cfg_w = 6 there; the FID that belongs to it is unconfirmed
    )
    distill.generator.optimizer.update(
        learning_rate=1e-5,  # code
        warmup_steps=0,  # code
        beta2=0.96,  # code
        eps=1e-8,  # code
        weight_decay=1e-5,  # code, on everything
        frozen=(),  # code: all is trained
    )
    distill.generator.dropout = True  # code: where it is differentiated
    config.sampler.temperature = 1.0  # code: sm_temp


def _shrink(config):
    """Two layers, random weights, a few steps; every other choice stays."""
    config.title = "ImageNet smoke test: random weights"
    config.teacher.random = config.fast_compile = True
    config.model.update(width=64, depth=2, heads=2, mlp_dim=128)
    config.tokenizer.update(
        name="vqgan",
        image_size=16,
        ch=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_levels=(1,),
        z_channels=16,
        embed_dim=16,
    )
    config.distill.update(num_steps=6, batch_size=4)
    config.distill.generator.optimizer.warmup_steps = 2
    config.distill.auxiliary.optimizer.warmup_steps = 2
    config.checkpoint.save_every_steps = 3
    config.logging.update(log_every_steps=1, images_every_steps=6, tensorboard=False)
    config.evaluation.batch_size = 9
