"""Every choice of the Di[M]O step, as plain data."""

import dataclasses

from dimo_jax.method.dimo import divergences
from dimo_jax.method.dimo.generate import GeneratorSettings
from dimo_jax.method.masked import denoise, masking


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """Every choice of the method.

    Attributes:
        generator: its start, its steps and its sampling.
        sigma_schedule: a name in schedules.WARMUPS, for the embedding noise.
        sigma_warmup_steps: its length.
        mask: re-masking of the generator's samples.
        divergence: what pulls the generator to the teacher.
        jacobian: whose softmax Jacobian the token gradient has: "auxiliary" (paper) or "generator".
        guidance: the teacher's scale s in u + s (c - u).
        adaptive_guidance: whether s grows with the mask ratio.
        teacher_temperature: divides the teacher's logits.
        teacher_top_k: 0 for all.
        teacher_top_p: 1 for all.
        teacher_lowered_by: what tokens outside top-k or top-p lose.
        aux_temperature: divides the auxiliary's logits in the divergence.
        reduction: of the token gradient, a name in losses.REDUCTIONS.
        weighting: w(t), "one" (released code) or "paper" (its appendix C).
        aux: the auxiliary's objective.
        aux_sample: what it learns from: a "fresh" sample of the updated generator (released code),
            or "reuse" of the one in the divergence (algorithm 1).
        aux_updates: K.
        teacher_dropout: whether the teacher's dropout is on (it is in the released MaskGit code).
        aux_dropout: likewise for the auxiliary, in both of its roles.
        generator_dropout: likewise.
        ema_decay: decay of the averaged generator, the one that is used.
        ema_warmup: whether the decay starts low (ema.decay_at).
        parts: in how many parts, one after the other, the networks see a batch; the gradient is
            that of the whole.
        step_shares: with several steps, how often each is trained; empty for all alike.
        step_remask: with several steps, what x_t masks again: "any" position, or only those "drawn"
            in the step that is trained. A gradient have only the latter.
        aux_steps: likewise, the steps whose samples the auxiliary learns from: "every" one, drawn
            as for the generator, or the "last".
    """

    generator: GeneratorSettings
    sigma_schedule: str
    sigma_warmup_steps: int
    mask: masking.MaskSettings
    divergence: divergences.Divergence
    jacobian: str
    guidance: float
    adaptive_guidance: bool
    teacher_temperature: float
    teacher_top_k: int
    teacher_top_p: float
    teacher_lowered_by: float
    aux_temperature: float
    reduction: str
    weighting: str
    aux: denoise.DenoiseSettings
    aux_sample: str
    aux_updates: int
    teacher_dropout: bool
    aux_dropout: bool
    generator_dropout: bool
    ema_decay: float
    ema_warmup: bool
    parts: int = 1
    step_shares: tuple[float, ...] = ()
    step_remask: str = "drawn"
    aux_steps: str = "every"
