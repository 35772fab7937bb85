"""Say how the learning rate of a training rises and falls. Importing this imports no torch."""

import math

DECAYS = ("cosine", "linear", "rsqrt")  # those whose rate goes to zero at the last step
CONSTANT = "constant"  # the rate stays at its peak
COOLDOWN = 0.1  # last share of the steps, in which a rate that falls as an inverse root goes to zero


def learning_rate(step: int, steps: int, peak: float, warmup: float, decay: str = "cosine") -> float:
    """Return the learning rate of a step.

    Args:
        step: number of the step, from 0.
        steps: steps of the whole training.
        peak: the highest rate.
        warmup: share of the steps in which the rate rises along a line; from 1 on, their number.
        decay: how the rate falls afterwards. "cosine" and "linear" go to zero at the last step (the paper
            uses both). "rsqrt" falls as the inverse root of the step, which needs no end (arXiv:2106.04560);
            in the last COOLDOWN of the steps it goes to zero along a line. "constant" stays at the peak.
    """
    rising = max(1, round(warmup * steps if warmup < 1 else warmup))
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)  # 0 to 1
    if decay == CONSTANT:
        return peak
    if decay == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if decay == "linear":
        return peak * (1 - done)
    return peak * math.sqrt(rising / (step + 1)) * min(1.0, (steps - step) / max(1.0, COOLDOWN * steps))
