"""Say how sure a share is that was counted."""

import math

Z_95 = 1.959964  # standard deviations on either side of the middle of a 95% interval


def wilson_interval(num_right: int, num_images: int) -> list[float]:
    """Return the 95% interval of a share: its lower and its upper end (Wilson 1927)."""
    z = Z_95
    share = num_right / num_images
    middle = share + z * z / (2 * num_images)
    half = z * math.sqrt(share * (1 - share) / num_images + (z / (2 * num_images)) ** 2)
    scale = 1 + z * z / num_images
    return [(middle - half) / scale, (middle + half) / scale]
