"""Say how sure a share is that was counted, and the difference of two shares of the same images."""

import math

SMALLEST_TERM = 1e-15  # of a sum: the terms after it are smaller still
Z_95 = 1.959964  # standard deviations on either side of the middle of a 95% interval


def wilson_interval(num_right: int, num_images: int) -> list[float]:
    """Return the 95% interval of a share: its lower and its upper end (Wilson 1927)."""
    z = Z_95
    share = num_right / num_images
    middle = share + z * z / (2 * num_images)
    half = z * math.sqrt(share * (1 - share) / num_images + (z / (2 * num_images)) ** 2)
    scale = 1 + z * z / num_images
    return [(middle - half) / scale, (middle + half) / scale]


def paired_interval(num_only_a: int, num_only_b: int, num_images: int) -> list[float]:
    """Return the 95% interval of the share of B minus that of A, of the same images.

    It is Wald's interval with half an image added to each of the four cells (Agresti and Min 2005).

    Args:
        num_only_a: images that count in A and not in B.
        num_only_b: images that count in B and not in A.
        num_images: all images.
    """
    of_a, of_b, num = num_only_a + 0.5, num_only_b + 0.5, num_images + 2
    middle = (of_b - of_a) / num
    half = Z_95 * math.sqrt(of_a + of_b - (of_b - of_a) ** 2 / num) / num
    return [max(-1.0, middle - half), min(1.0, middle + half)]


def mcnemar_p_value(num_only_a: int, num_only_b: int) -> float:
    """Return how probable a split is that is at least as uneven, if A and B were equally good.

    It is the exact two-sided test (McNemar 1947): of the images on which the two differ, each is as probably
    A's as B's.
    """
    num = num_only_a + num_only_b
    least = min(num_only_a, num_only_b)
    total = 0.0
    for count in range(least, -1, -1):
        log_term = math.lgamma(num + 1) - math.lgamma(count + 1) - math.lgamma(num - count + 1)
        term = math.exp(log_term - num * math.log(2))
        total += term
        if term < total * SMALLEST_TERM:
            break
    return min(1.0, 2 * total)
