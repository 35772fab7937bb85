"""Exchange numbers between the workers of a training."""

from typing import Any

import torch
import torch.distributed as dist


class Collectives:
    """Exchange numbers between workers. All workers must make the same calls in the same order.

    Attributes:
        rank: number of this worker, from 0.
        num_workers: number of all workers.
        device: device of this worker.
    """

    def __init__(self, rank: int, num_workers: int, device: torch.device):
        self.rank = rank
        self.num_workers = num_workers
        self.device = device

    def sums(self, values: list[float]) -> list[float]:
        """Return the sums of numbers over all workers."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.num_workers > 1:
            dist.all_reduce(total)
        return total.cpu().tolist()

    def add_up(self, numbers: torch.Tensor) -> None:
        """Replace a tensor by its sum over all workers; it has one shape on all of them, and their device."""
        if self.num_workers > 1:
            dist.all_reduce(numbers)

    def any(self, value: bool) -> bool:
        """Tell whether a condition holds on any worker."""
        return self.maxima([float(value)])[0] > 0

    def maxima(self, values: list[float]) -> list[float]:
        """Return the largest of each number over all workers."""
        if self.num_workers == 1:
            return values
        largest = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.cpu().tolist()

    def gather(self, item: Any) -> tuple[Any, ...]:
        """Return the items of all workers, in the order of their ranks."""
        if self.num_workers == 1:
            return (item,)
        items = [item] * self.num_workers
        dist.all_gather_object(items, item)
        return tuple(items)
